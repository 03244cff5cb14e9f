// The chat: sends the open conversation, shows the answer as it grows, and has the browser keep both.

import { Bubble, figuresWords } from "./chat_bubble.js";
import { ChatList } from "./chat_list.js";
import { streamAnswer } from "./chat_stream.js";
import { forServer, openCalls, parseTools } from "./chat_tools.js";
import * as conversations from "./conversations.js";
import { el, find, say } from "./dom.js";
import { t } from "./language.js";
import { notice } from "./notices.js";

const SETTINGS = ["temperature", "top_p", "max_tokens"];
const TITLE_CHARS = 60;

export class Chat {
  #root;
  #panel;
  #list;
  #conversation = { id: "", title: "", model: "", messages: [] };
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
    find("#tools", root).addEventListener("input", () => this.#tools());
    find("#chat-model", root).addEventListener("change", ({ target }) => {
      this.#wished = target.value;
      localStorage.setItem("plimsoll.model", target.value);
    });
    this.#list = new ChatList(find("#kept", root), {
      onOpen: (id) => this.#open(id),
      onTitle: (title) => (this.#conversation.title = title),
      onDelete: () => (this.#conversation.isDeleted = true),
    });
    this.#open(this.#list.open);
  }

  /** Shows the conversation `id`, an empty one for "". An answer that is running ends and is kept where it belongs. */
  #open(id) {
    this.#abort?.abort();
    this.#conversation = conversations.open(id) ?? { id: "", title: "", model: "", messages: [] };
    this.#list.show(this.#conversation.id);
    find("#conversation", this.#root).replaceChildren();
    for (const message of this.#conversation.messages) this.#bubble(message);
    find("#chat-hint", this.#root).hidden = this.#conversation.messages.length > 0;
    this.#wished = this.#conversation.model || this.#wished;
    this.#offer(true);
    this.#asks();
  }

  #models() {
    this.#offer();
    const name = find("#chat-model", this.#root).value;
    const loading = this.#panel.models.find((one) => one.name === name && one.state === "loading");
    if (this.#abort && loading?.total_bytes) {
      this.#status(t("chat.load_wait", { n: Math.floor((100 * loading.done_bytes) / loading.total_bytes) }));
    }
  }

  /** The models to choose from; the choice stays unless it is gone or `anew`. */
  #offer(anew = false) {
    const select = find("#chat-model", this.#root);
    const names = this.#panel.models.map((one) => one.name);
    const isSame = names.join("\n") === [...select.options].map((one) => one.value).join("\n");
    if (isSame && !anew) return;
    if (!isSame) select.replaceChildren(...names.map((name) => el("option", { value: name, text: name })));
    const used = this.#panel.models.filter((one) => one.idle_s != null).sort((a, b) => a.idle_s - b.idle_s);
    select.value = names.includes(this.#wished) ? this.#wished : (used[0]?.name ?? names[0] ?? "");
  }

  #body(messages) {
    const body = { model: find("#chat-model", this.#root).value, messages: messages.map(forServer) };
    for (const name of SETTINGS) {
      const { value } = find(`#${name}`, this.#root);
      if (value !== "") body[name] = Number(value);
    }
    const system = find("#system", this.#root).value.trim();
    if (system) body.messages.unshift({ role: "system", content: system });
    const tools = parseTools(find("#tools", this.#root).value);
    if (tools) body.tools = tools;
    return body;
  }

  /** Says in the field itself whether it is a list of tools. */
  #tools() {
    const field = find("#tools", this.#root);
    try {
      parseTools(field.value);
      field.setCustomValidity("");
    } catch {
      field.setCustomValidity(t("chat.tools_wrong"));
    }
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
    const conversation = this.#conversation;
    const text = field.value;
    this.#ask(conversation, text);
    field.value = "";
    if (!openCalls(conversation.messages).length && !(await this.#answered(conversation))) {
      // Unanswered: it is not sent along with the next message, but may be sent again.
      conversation.messages.pop();
      if (conversation === this.#conversation) field.value ||= text;
    }
    if (conversation.messages.length) this.#keep(conversation);
    if (conversation === this.#conversation) this.#asks();
    if (document.activeElement === document.body) field.focus({ preventScroll: true });
  }

  /** Takes the text into the conversation: as the result of the first call that waits for one, else as a message. */
  #ask(conversation, text) {
    const [call] = openCalls(conversation.messages);
    const asked = call ? { role: "tool", tool_call_id: call.id, name: call.name, content: text } : { role: "user", content: text };
    conversation.id ||= crypto.randomUUID?.() ?? String(Date.now() + Math.random());
    conversation.title ||= text.trim().split("\n")[0].slice(0, TITLE_CHARS);
    conversation.model = find("#chat-model", this.#root).value;
    conversation.messages.push(asked);
    this.#list.show(conversation.id, conversation.title);
    this.#bubble(asked);
  }

  /** Streams the answer into the conversation; false where none came. */
  async #answered(conversation) {
    const made = { role: "assistant", content: "" };
    const abort = (this.#abort = new AbortController());
    const body = this.#body(conversation.messages);
    const show = this.#growing(made);
    // A page that is left in the midst of an answer keeps what was said.
    const leave = () => hasCome(made) && conversations.save({ ...conversation, messages: [...conversation.messages, made] });
    addEventListener("pagehide", leave);
    this.#running(true);
    this.#status(t("chat.first_wait"));
    try {
      made.figures = await streamAnswer(body, show, abort.signal);
      show.end(figuresWords(made.figures), "figures");
    } catch (error) {
      show.end(error.message, "error");
    }
    removeEventListener("pagehide", leave);
    if (hasCome(made)) conversation.messages.push(made);
    this.#abort = null;
    this.#running(false);
    this.#status("");
    return hasCome(made);
  }

  /** What `streamAnswer` calls while the answer `made` grows, and `end`. Drawn at most once a frame. */
  #growing(made) {
    const bubble = this.#bubble(made);
    bubble.node.setAttribute("aria-busy", "true");
    let frame = 0;
    const draw = () => {
      frame = 0;
      bubble.draw(made);
      this.#follow();
    };
    const grow = (words, change) => {
      this.#status(t(words));
      change();
      frame ||= requestAnimationFrame(draw);
    };
    return {
      text: (part) => grow("chat.answering", () => (made.content += part)),
      reasoning: (part) => grow("chat.thinking", () => (made.thoughts = (made.thoughts ?? "") + part)),
      call: (index, { id, function: { name = "", arguments: part = "" } }) =>
        grow("chat.answering", () => {
          made.calls ??= [];
          made.calls[index] ??= { id, name, arguments: "" };
          made.calls[index].arguments += part;
        }),
      waiting: (words) => this.#status(words),
      end: (text, kind) => {
        cancelAnimationFrame(frame);
        draw();
        bubble.node.removeAttribute("aria-busy");
        bubble.end(text, kind);
        this.#follow();
      },
    };
  }

  #keep(conversation) {
    if (conversation.isDeleted) return;
    if (!conversations.save(conversation)) notice(t("chat.full"), "error");
    this.#list.show(conversation === this.#conversation ? conversation.id : undefined);
  }

  #bubble(message) {
    const bubble = new Bubble(message);
    find("#conversation", this.#root).append(bubble.node);
    find("#chat-hint", this.#root).hidden = true;
    this.#follow(true);
    return bubble;
  }

  /** Says in the field what is asked for: a message, or the result of a call. */
  #asks() {
    const [call] = openCalls(this.#conversation.messages);
    find("#message", this.#root).placeholder = call ? t("chat.result_hint", { name: call.name }) : t("chat.message_hint");
  }

  /** Scrolls along, unless the reader has scrolled up. */
  #follow(always = false) {
    const box = find("#conversation", this.#root);
    if (always || box.scrollHeight - box.scrollTop - box.clientHeight < 120) box.scrollTop = box.scrollHeight;
  }

  #running(yes) {
    find("#stop", this.#root).hidden = !yes;
    find("#send", this.#root).hidden = yes;
  }

  #status(words) {
    say(find("#chat-status", this.#root), words);
  }
}

const hasCome = (made) => made.content !== "" || made.calls !== undefined;
