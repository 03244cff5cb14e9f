// One model's card. Built once, then only its words and bars change, so that the focus stays on its buttons.

import { el, find, say } from "./dom.js";
import { ago, bytes, duration, number, percent, rate } from "./format.js";
import { t, worded } from "./language.js";

const HELD = new Set(["loading", "ready", "busy", "draining", "backoff"]);

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
      el("p", { class: "facts plan" }),
      el("p", { class: "error", hidden: true }),
      el(
        "div",
        { class: "actions" },
        el("button", { class: "main", onclick: () => this.#press(act, isHeld(this.#model) ? "unload" : "load") }),
        el("button", { class: "pin", onclick: () => this.#press(act, this.#model.pinned ? "unpin" : "pin") }),
        el("button", { class: "plain", text: t("card.settings"), "aria-label": t("card.settings_of", { name }), onclick: () => act("settings", name) }),
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
    find(".plan", node).hidden = isHeld(model);
    this.#buttons();
    this.tick();
  }

  /** What a load would do, as long as the model is not loaded. */
  plan(words) {
    say(find(".plan", this.node), words);
  }

  /** What goes on by itself: ages and the countdown. */
  tick() {
    const { idle_s: idle, unload_in_s: left, pinned, state, heardAt } = this.#model;
    const since = (performance.now() - heardAt) / 1000;
    const words = [];
    if (state !== "busy" && idle != null) words.push(t("card.used", { ago: ago(idle + since) }));
    if (left != null) words.push(t("card.leaves", { time: duration(left - since) }));
    if (pinned) words.push(t("card.pinned"));
    say(find(".minor", this.node), words.join(" · "));
  }

  #buttons() {
    const { state, pinned } = this.#model;
    const leaving = state === "stopping" || state === "draining";
    const main = find(".main", this.node);
    const verb = isHeld(this.#model) || leaving ? "unload" : "load";
    say(main, t(`card.${verb}`));
    // Not `disabled`, which would take the focus away.
    main.setAttribute("aria-disabled", String(leaving || this.#pending === verb));
    main.setAttribute("aria-label", t("card.of", { verb: t(`card.${verb}`), name: this.name }));
    const pin = find(".pin", this.node);
    const word = t(pinned ? "card.unpin" : "card.pin");
    say(pin, word);
    pin.title = t(pinned ? "card.unpin_hint" : "card.pin_hint");
    pin.setAttribute("aria-label", t("card.of", { verb: word, name: this.name }));
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
  if (model.state !== "loading" || !(model.total_bytes || model.stage)) return worded("state", model.state);
  if (!model.total_bytes) return t("state.loading_stage", { stage: worded("stage", model.stage) });
  return t("state.loading_part", { n: Math.floor((100 * model.done_bytes) / model.total_bytes) });
}

const share = (held, total) => (total ? t("card.share", { size: bytes(held), percent: percent((100 * held) / total) }) : bytes(held));

function facts(model, total) {
  const words = [];
  if (model.state === "loading" && model.total_bytes) words.push(t("card.progress", { stage: worded("stage", model.stage), done: bytes(model.done_bytes), total: bytes(model.total_bytes) }));
  else if (model.footprint_bytes) words.push(share(model.footprint_bytes, total));
  if (model.active) words.push(t("card.active", { n: model.active }));
  if (model.queued - model.paused) words.push(t("card.queued", { n: model.queued - model.paused }));
  if (model.paused) words.push(t("card.paused", { n: model.paused }));
  if (model.active && model.tokens_per_s) words.push(rate(model.tokens_per_s));
  if (model.info && !model.active) words.push(`${model.info.device} ${model.info.dtype}`, t("card.context", { n: number(model.info.context) }));
  return words.join(" · ");
}
