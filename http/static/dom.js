// Building elements. Text from the server only ever becomes text nodes.

export const find = (selector, root = document) => root.querySelector(selector);

/** An element; `props` are attributes, `on...` listeners, and `text`. Null children are left out. */
export function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name === "text") made.textContent = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") made.toggleAttribute(name, value);
    else if (value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

/** Sets the text where it differs, so that an unchanged live region stays silent. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Like `replaceChildren`, but leaves the page alone where nothing moved, and the focus where it was. */
export function arrange(parent, children) {
  if (children.length === parent.children.length && children.every((one, at) => parent.children[at] === one)) return;
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  parent.replaceChildren(...children);
  if (focused?.isConnected) focused.focus({ preventScroll: true });
}
