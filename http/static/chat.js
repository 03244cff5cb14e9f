// The chat playground: one conversation, which the browser keeps.

import { render } from "./chat_text.js";
import { streamAnswer } from "./chat_stream.js";
import { el, find, say } from "./dom.js";

const KEPT = "plimsoll.conversation";
const KEPT_CHARS = 1_000_000;
const SETTINGS = ["temperature", "top_p", "max_tokens"];
const REASONS = { length: "cut at the token limit", stopped: "stopped" };

export class Chat {
  #root;
  #panel;
  #messages = [];
  #abort = null;
  #wished = localStorage.getItem("plimsoll.model");

  /** `panel` is the ModelsPanel, which knows the models. */
  constructor(root, panel) {
    this.#root = root;
    this.#panel = panel;
    panel.addEventListener("change", () => this.#models());
    find("#composer", root).addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    find("#message", root).addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#submit();
    });
    find("#stop", root).addEventListener("click", () => this.#abort?.abort());
    find("#clear", root).addEventListener("click", () => this.#clear());
    find("#chat-model", root).addEventListener("change", ({ target }) => {
      this.#wished = target.value;
      localStorage.setItem("plimsoll.model", target.value);
    });
    this.#restore();
  }

  /** The conversation of the last visit, which this browser keeps until it is cleared. */
  #restore() {
    try {
      this.#messages = JSON.parse(localStorage.getItem(KEPT) ?? "[]");
    } catch {
      this.#messages = [];
    }
    for (const { role, content } of this.#messages) this.#bubble(role, content);
  }

  #keep() {
    let kept = this.#messages;
    while (JSON.stringify(kept).length > KEPT_CHARS) kept = kept.slice(2);
    localStorage.setItem(KEPT, JSON.stringify(kept));
  }

  #models() {
    const select = find("#chat-model", this.#root);
    const names = this.#panel.models.map((one) => one.name);
    if (names.join("\n") !== [...select.options].map((one) => one.value).join("\n")) {
      select.replaceChildren(...names.map((name) => el("option", { value: name, text: name })));
      const used = this.#panel.models.filter((one) => one.idle_s != null).sort((a, b) => a.idle_s - b.idle_s);
      select.value = names.includes(this.#wished) ? this.#wished : (used[0]?.name ?? names[0] ?? "");
    }
    const loading = this.#panel.models.find((one) => one.name === select.value && one.state === "loading");
    if (this.#abort && loading?.total_bytes) {
      this.#status(`waiting for the model to load: ${Math.floor((100 * loading.done_bytes) / loading.total_bytes)} %`);
    }
  }

  #body() {
    const body = { model: find("#chat-model", this.#root).value, messages: [] };
    for (const name of SETTINGS) {
      const { value } = find(`#${name}`, this.#root);
      if (value !== "") body[name] = Number(value);
    }
    const system = find("#system", this.#root).value.trim();
    if (system) body.messages.push({ role: "system", content: system });
    body.messages.push(...this.#messages);
    return body;
  }

  async #submit() {
    const field = find("#message", this.#root);
    const settings = find("#settings", this.#root);
    if (this.#abort || !field.value.trim()) return;
    if (!settings.checkValidity()) {
      settings.closest("details").open = true;
      settings.reportValidity();
      return;
    }
    const asked = { role: "user", content: field.value };
    const messages = this.#messages; // another list once the conversation is cleared
    messages.push(asked);
    field.value = "";
    this.#bubble("user", asked.content);
    const abort = (this.#abort = new AbortController());
    this.#running(true);
    const answer = this.#answer();
    this.#status("waiting for the first token");
    try {
      const figures = await streamAnswer(this.#body(), answer, abort.signal);
      answer.done(figures);
    } catch (error) {
      answer.failed(error.message);
    }
    if (answer.said) {
      messages.push({ role: "assistant", content: answer.said });
      if (messages === this.#messages) this.#keep();
    } else {
      // Unanswered: it is not sent along with the next message, but may be sent again.
      messages.pop();
      if (messages === this.#messages) field.value ||= asked.content;
    }
    this.#abort = null;
    this.#running(false);
    this.#status("");
    if (document.activeElement === document.body) field.focus({ preventScroll: true });
  }

  /** The growing answer: what `streamAnswer` calls, and how it ended. Drawn at most once a frame. */
  #answer() {
    const bubble = this.#bubble("assistant", "");
    const body = find(".body", bubble);
    const thoughts = el("details", { class: "thoughts", hidden: true }, el("summary", { text: "Thoughts" }), el("div"));
    bubble.prepend(thoughts);
    let [said, thought, frame] = ["", "", 0];
    const draw = () => {
      frame = 0;
      render(body, said);
      thoughts.hidden = !thought;
      render(thoughts.lastChild, thought);
      this.#follow();
    };
    const soon = () => (frame ||= requestAnimationFrame(draw));
    const close = (text, kind) => {
      cancelAnimationFrame(frame);
      draw();
      bubble.removeAttribute("aria-busy");
      bubble.append(el("p", { class: kind, text }));
      this.#follow();
    };
    bubble.setAttribute("aria-busy", "true");
    return {
      get said() {
        return said;
      },
      text: (part) => {
        if (!said) this.#status("answering");
        said += part;
        soon();
      },
      reasoning: (part) => {
        if (!thought) this.#status("thinking");
        thought += part;
        soon();
      },
      waiting: (words) => this.#status(words),
      done: (figures) => close(figuresWords(figures), "figures"),
      failed: (message) => close(message, "error"),
    };
  }

  #bubble(role, text) {
    const body = el("div", { class: "body" });
    render(body, text);
    const bubble = el("li", { class: role, "aria-label": role === "user" ? "You" : "Answer" }, body);
    find("#conversation", this.#root).append(bubble);
    find("#chat-hint", this.#root).hidden = true;
    this.#follow(true);
    return bubble;
  }

  /** Scrolls along, unless the reader has scrolled up. */
  #follow(always = false) {
    const box = find("#conversation", this.#root);
    if (always || box.scrollHeight - box.scrollTop - box.clientHeight < 120) box.scrollTop = box.scrollHeight;
  }

  #clear() {
    this.#abort?.abort();
    this.#messages = [];
    localStorage.removeItem(KEPT);
    find("#conversation", this.#root).replaceChildren();
    find("#chat-hint", this.#root).hidden = false;
    find("#message", this.#root).focus();
  }

  #running(yes) {
    find("#stop", this.#root).hidden = !yes;
    find("#send", this.#root).hidden = yes;
  }

  #status(words) {
    say(find("#chat-status", this.#root), words);
  }
}

function figuresWords({ first_s: first, tokens, per_s: rate, exact, reason, prompt, reused }) {
  const words = [];
  if (REASONS[reason]) words.push(REASONS[reason]);
  if (rate !== null) words.push(`${exact ? "" : "about "}${rate.toFixed(1)} tokens/s`);
  if (first !== null) words.push(`first token after ${first < 1 ? `${Math.round(1000 * first)} ms` : `${first.toFixed(1)} s`}`);
  words.push(`${exact ? "" : "about "}${tokens} tokens`);
  if (reused) words.push(`${reused} of ${prompt} prompt tokens reused`);
  return words.join(" · ");
}
