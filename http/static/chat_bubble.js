// One message of the chat on the page: its text, its thoughts folded, the tools that it calls, its figures.

import { render } from "./chat_text.js";
import { readable } from "./chat_tools.js";
import { el, find, say } from "./dom.js";
import { number, rate, seconds } from "./format.js";
import { t } from "./language.js";

const LABELS = { user: "chat.you", assistant: "chat.answer", tool: "chat.result" };
const REASONS = { length: "chat.cut", stopped: "chat.stopped" };

export class Bubble {
  constructor(message) {
    const { role, name } = message;
    const label = t(LABELS[role], { name });
    this.node = el("li", { class: role, "aria-label": label }, role === "tool" ? el("p", { class: "figures", text: label }) : null, el("div", { class: "body" }));
    this.draw(message);
    if (message.figures) this.end(figuresWords(message.figures), "figures");
  }

  /** Brings it to what the message is now; a message only grows. */
  draw({ content, thoughts, calls = [] }) {
    render(find(".body", this.node), content);
    if (thoughts) render(this.#part("thoughts", () => el("details", { class: "thoughts" }, el("summary", { text: t("chat.thoughts") }), el("div"))).lastChild, thoughts);
    calls.forEach((call, at) => {
      const made = this.#part(`call-${at}`, () => el("div", { class: `call call-${at}` }, el("p"), el("pre")));
      say(made.firstChild, t("chat.call", { name: call.name }));
      say(made.lastChild, readable(call.arguments));
    });
  }

  /** Its last line: figures or an error. */
  end(text, kind) {
    this.node.append(el("p", { class: kind, text }));
  }

  /** The part of that class, made where it is not there yet: thoughts before the text, calls behind it. */
  #part(name, make) {
    const there = find(`.${name}`, this.node);
    if (there) return there;
    const made = make();
    if (name === "thoughts") this.node.prepend(made);
    else this.node.append(made);
    return made;
  }
}

/** What `streamAnswer` has measured, in words. */
export function figuresWords({ first_s: first, tokens, per_s: perSecond, exact, reason, prompt, reused }) {
  const about = (what) => (exact ? what : t("chat.about", { what }));
  const words = [];
  if (REASONS[reason]) words.push(t(REASONS[reason]));
  if (perSecond !== null) words.push(about(rate(perSecond)));
  if (first !== null) words.push(t("chat.first", { time: seconds(first) }));
  words.push(about(t("chat.tokens", { n: tokens })));
  if (reused) words.push(t("chat.reused", { n: number(reused), all: number(prompt) }));
  return words.join(" · ");
}
