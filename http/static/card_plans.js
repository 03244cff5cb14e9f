// What a load of each model that is seen would do: asked of the server when models come or go, and when a card is pointed at.

import { get } from "./api.js";
import { planWords } from "./plans.js";
import { t } from "./language.js";

const PAUSE_MS = 3000;

export class CardPlans {
  #inView = new Set();
  #idle = new Set();
  #key = "";
  #isStale = false;
  #isRunning = false;
  #observer = new IntersectionObserver((entries) => this.#moved(entries));

  /** From now on keeps `card.plan(words)` up to date while its model is not loaded. */
  watch(card) {
    this.#observer.observe(card.node);
    card.node.plans = card;
    for (const kind of ["pointerenter", "focusin"]) card.node.addEventListener(kind, () => this.#ask(card));
  }

  /** `idle` are the models that a load could begin for; the rest say who holds memory. */
  update(idle, held) {
    this.#idle = new Set(idle.map((one) => one.name));
    const key = JSON.stringify(held.map((one) => [one.name, one.state, one.pinned]));
    if (key === this.#key) return;
    this.#key = key;
    this.#soon();
  }

  #moved(entries) {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) this.#inView.delete(target.plans);
      else this.#inView.add(target.plans);
    }
    this.#soon();
  }

  async #soon() {
    this.#isStale = true;
    if (this.#isRunning) return;
    this.#isRunning = true;
    while (this.#isStale) {
      this.#isStale = false;
      for (const card of this.#inView) await this.#ask(card);
      // Models that answer go to and fro between busy and ready.
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    }
    this.#isRunning = false;
  }

  async #ask(card) {
    if (!this.#idle.has(card.name)) return;
    try {
      card.plan(planWords(await get(`/admin/plan?model=${encodeURIComponent(card.name)}`)));
    } catch (error) {
      card.plan(error.code === "not_here" ? t("plan.absent") : "");
    }
  }
}
