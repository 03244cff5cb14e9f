// The models panel: cards, and what their buttons and the clean-up do.

import { get, modelPath, post } from "./api.js";
import { CardPlans } from "./card_plans.js";
import { askUser } from "./dialog.js";
import { arrange, el, find, say } from "./dom.js";
import { listed } from "./format.js";
import { t } from "./language.js";
import { isHeld, ModelCard } from "./model_card.js";
import { changeSettings } from "./model_settings.js";
import { notice, told } from "./notices.js";
import { cleanupResult, cleanupVictims, fetchQuestion, loadQuestion } from "./plans.js";

const RANK = { busy: 0, ready: 0, draining: 0, loading: 0, backoff: 0, stopping: 0 };

export class ModelsPanel extends EventTarget {
  #root;
  #cards = new Map();
  #models = [];
  #total = null;
  #plans = new CardPlans();
  #downloads;
  #hue;

  /** `downloads` fetch what is not here; `hue(name)` is the model's colour elsewhere on the page. Dispatches "change" when the list changed. */
  constructor(root, feed, downloads, hue) {
    super();
    this.#root = root;
    this.#downloads = downloads;
    this.#hue = hue;
    feed.addEventListener("sample", ({ detail }) => this.#whole(detail.total));
    feed.addEventListener("models", ({ detail }) => this.#show(detail.models));
    find("#cleanup", root).addEventListener("click", () => told(() => this.#cleanUp()));
    setInterval(() => document.hidden || this.#cards.forEach((card) => card.tick()), 1000);
  }

  get models() {
    return this.#models;
  }

  /** Footprints are shown as parts of `total`. */
  #whole(total) {
    if (total == null || total === this.#total) return;
    this.#total = total;
    this.#show(this.#models);
  }

  #show(models, heardAt = performance.now()) {
    this.#models = models;
    for (const { name } of models) this.#hue(name); // in the server's order, not in that of the loads
    const order = [...models].sort((a, b) => (RANK[a.state] ?? 1) - (RANK[b.state] ?? 1) || a.name.localeCompare(b.name));
    const nodes = order.map((model) => {
      const card = this.#card(model.name);
      card.show(model, this.#total, this.#hue(model.name), heardAt);
      return card.node;
    });
    arrange(find("#cards", this.#root), nodes);
    const held = models.filter(isHeld);
    this.#plans.update(models.filter((one) => !isHeld(one)), held);
    say(find(".count", this.#root), t("models.loaded", { n: held.length, all: models.length }));
    find("#no-models", this.#root).hidden = models.length > 0;
    this.dispatchEvent(new Event("change"));
  }

  #card(name) {
    if (!this.#cards.has(name)) {
      const made = new ModelCard(name, (verb, of) => told(() => this.#act(verb, of)));
      this.#cards.set(name, made);
      this.#plans.watch(made);
    }
    return this.#cards.get(name);
  }

  async #act(verb, name) {
    if (verb === "settings") {
      await changeSettings(name);
    } else if (verb === "pin" || verb === "unpin") {
      await post(modelPath(name, "pin"), { pinned: verb === "pin" });
    } else if (verb === "unload") {
      await this.#unload(name);
    } else if (await this.#mayLoad(name)) {
      await post(modelPath(name, "load"));
      notice(t("models.is_loaded", { name }));
    }
  }

  async #unload(name) {
    const active = this.#models.find((one) => one.name === name)?.active ?? 0;
    const question = {
      title: t("models.unload_question", { name }),
      body: [t("models.unload_body", { name, n: active })],
      actions: [{ label: t("card.unload"), value: "unload", kind: "danger" }],
    };
    if (active && !(await askUser(question))) return;
    await post(modelPath(name, "unload"));
    notice(t("models.is_unloaded", { name }));
  }

  async #mayLoad(name) {
    let question;
    try {
      question = loadQuestion(await get(`/admin/plan?model=${encodeURIComponent(name)}`));
    } catch (error) {
      // The server can't say what it needs before its files are here.
      if (error.code !== "not_here") throw error;
      question = fetchQuestion(name, error.message);
    }
    if (question === null) return true;
    const choice = await askUser(question);
    if (choice === "fetch") await this.#downloads.start(name);
    return choice === "load";
  }

  async #cleanUp() {
    const [gentle, all] = [cleanupVictims(this.#models, false), cleanupVictims(this.#models, true)];
    const words = (victims) => (victims.length ? t("cleanup.now", { names: listed(victims) }) : t("cleanup.now_none"));
    const choice = await askUser({
      title: t("cleanup.title"),
      body: [
        el("p", {}, el("strong", { text: t("cleanup.idle") }), t("cleanup.idle_body"), words(gentle)),
        el("p", {}, el("strong", { text: t("cleanup.all") }), t("cleanup.all_body"), words(all)),
      ],
      actions: [
        { label: t("cleanup.do_idle"), value: "idle", kind: "primary" },
        { label: t("cleanup.do_all"), value: "all", kind: "danger" },
      ],
    });
    if (choice === null) return;
    const button = find("#cleanup", this.#root);
    button.disabled = true;
    try {
      notice(cleanupResult(await post("/admin/cleanup", { aggressive: choice === "all" })));
    } finally {
      button.disabled = false;
    }
  }
}
