// One model's card. Built once, then only its words and bars change, so that the focus stays on its buttons.

import { el, find, say } from "./dom.js";
import { ago, bytes, duration, percent } from "./format.js";

const HELD = new Set(["loading", "ready", "busy", "draining", "backoff"]);
const WORDS = {
  cold: "not loaded",
  ready: "ready",
  busy: "answering",
  draining: "finishing",
  stopping: "unloading",
  stopped: "unloaded",
  backoff: "restarting",
  failed: "failed",
};

export const isHeld = (model) => HELD.has(model.state);

export class ModelCard {
  #model = null;
  #pending = null;

  /** `act(verb, name)` with load, unload, pin, unpin and settings; returns a promise. */
  constructor(name, act) {
    this.name = name;
    this.node = el(
      "li",
      { class: "card", "data-model": name },
      el("div", { class: "head" }, el("h3", { text: name, title: name }), el("span", { class: "state" })),
      el("div", { class: "meter", "aria-hidden": "true" }, el("span", { class: "fill" })),
      el("p", { class: "facts" }),
      el("p", { class: "facts minor" }),
      el("p", { class: "error", hidden: true }),
      el(
        "div",
        { class: "actions" },
        el("button", { class: "main", onclick: () => this.#press(act, isHeld(this.#model) ? "unload" : "load") }),
        el("button", { class: "pin", onclick: () => this.#press(act, this.#model.pinned ? "unpin" : "pin") }),
        el("button", { class: "plain", text: "Settings", "aria-label": `Settings of ${name}`, onclick: () => act("settings", name) }),
      ),
    );
  }

  /** `total` is the memory of the binding source in bytes or null, `hue` the model's colour there. */
  show(model, total, hue, heardAt) {
    this.#model = { ...model, heardAt };
    const { node } = this;
    node.dataset.state = model.state;
    const part = model.state === "loading" && model.total_bytes ? model.done_bytes / model.total_bytes : model.footprint_bytes / (total ?? Infinity);
    find(".fill", node).className = `fill hue-${hue}`;
    find(".fill", node).style.width = `${Math.min(100, 100 * (part || 0))}%`;
    const word = stateWord(model);
    say(find(".state", node), word);
    say(find(".facts", node), facts(model, total));
    const error = find(".error", node);
    error.hidden = !model.error;
    say(error, model.error ?? "");
    this.#buttons();
    this.tick();
  }

  /** What goes on by itself: ages and the countdown. */
  tick() {
    const { idle_s: idle, unload_in_s: left, pinned, state, heardAt } = this.#model;
    const since = (performance.now() - heardAt) / 1000;
    const words = [];
    if (state !== "busy" && idle != null) words.push(`used ${ago(idle + since)}`);
    if (left != null) words.push(`unloads in ${duration(left - since)}`);
    if (pinned) words.push("pinned: stays loaded");
    say(find(".minor", this.node), words.join(" · "));
  }

  #buttons() {
    const { state, pinned } = this.#model;
    const leaving = state === "stopping" || state === "draining";
    const main = find(".main", this.node);
    const verb = isHeld(this.#model) || leaving ? "Unload" : "Load";
    say(main, verb);
    // Not `disabled`, which would take the focus away.
    main.setAttribute("aria-disabled", String(leaving || this.#pending === verb.toLowerCase()));
    main.setAttribute("aria-label", `${verb} ${this.name}`);
    const pin = find(".pin", this.node);
    say(pin, pinned ? "Unpin" : "Pin");
    pin.title = pinned ? "Let it be unloaded for being idle or to make room" : "Never unload it for being idle or to make room";
    pin.setAttribute("aria-label", `${pinned ? "Unpin" : "Pin"} ${this.name}`);
  }

  async #press(act, verb) {
    if (this.#pending || (verb !== "pin" && verb !== "unpin" && find(".main", this.node).ariaDisabled === "true")) return;
    this.#pending = verb;
    this.#buttons();
    await act(verb, this.name);
    this.#pending = null;
    this.#buttons();
  }
}

function stateWord(model) {
  if (model.state !== "loading") return WORDS[model.state] ?? model.state;
  if (!model.total_bytes) return model.stage ? `loading: ${model.stage}` : "loading";
  return `loading ${Math.floor((100 * model.done_bytes) / model.total_bytes)} %`;
}

const share = (held, total) => (total ? `${bytes(held)}, ${percent((100 * held) / total)} of all` : bytes(held));

function facts(model, total) {
  const words = [];
  if (model.state === "loading" && model.total_bytes) words.push(`${model.stage} ${bytes(model.done_bytes)} of ${bytes(model.total_bytes)}`);
  else if (model.footprint_bytes) words.push(share(model.footprint_bytes, total));
  if (model.active) words.push(`${model.active} active`);
  if (model.queued - model.paused) words.push(`${model.queued - model.paused} queued`);
  if (model.paused) words.push(`${model.paused} paused`);
  if (model.active && model.tokens_per_s) words.push(`${model.tokens_per_s.toFixed(model.tokens_per_s < 10 ? 1 : 0)} tokens/s`);
  if (model.info && !model.active) words.push(`${model.info.device} ${model.info.dtype}`, `context ${model.info.context.toLocaleString("en")}`);
  return words.join(" · ");
}
