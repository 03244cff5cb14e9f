// Text with ``` fences as paragraphs and code blocks. Everything stays plain text.

import { el } from "./dom.js";

/** `[{code: bool, text}]`; a fence that is still open runs to the end. */
export function blocks(text) {
  const found = [];
  let lines = [];
  let isCode = false;
  const close = () => {
    const block = lines.join("\n");
    if (isCode || block.trim()) found.push({ code: isCode, text: isCode ? block : block.replace(/^\n+|\n+$/g, "") });
    lines = [];
  };
  for (const line of text.split("\n")) {
    if (/^\s*```/.test(line)) {
      close();
      isCode = !isCode;
    } else {
      lines.push(line);
    }
  }
  if (!isCode || lines.length) close();
  return found;
}

/** Brings `node` to show `text`; a block that did not change keeps its element, and the selection in it. */
export function render(node, text) {
  const wanted = blocks(text);
  wanted.forEach((block, at) => {
    const tag = block.code ? "PRE" : "P";
    const there = node.children[at];
    if (there?.tagName === tag) {
      if (there.textContent !== block.text) there.textContent = block.text;
    } else {
      const made = el(tag, { text: block.text });
      if (there) there.replaceWith(made);
      else node.append(made);
    }
  });
  while (node.children.length > wanted.length) node.lastChild.remove();
}
