// The models panel: cards, and what their buttons and the clean-up do.

import { get, modelPath, post } from "./api.js";
import { askUser } from "./dialog.js";
import { arrange, el, find, say } from "./dom.js";
import { count, listed } from "./format.js";
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
  #hue;

  /** `hue(name)` is the model's colour elsewhere on the page. Dispatches "change" when the list changed. */
  constructor(root, feed, hue) {
    super();
    this.#root = root;
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
    const loaded = models.filter(isHeld).length;
    say(find(".count", this.#root), `${loaded} of ${models.length} loaded`);
    find("#no-models", this.#root).hidden = models.length > 0;
    this.dispatchEvent(new Event("change"));
  }

  #card(name) {
    if (!this.#cards.has(name)) this.#cards.set(name, new ModelCard(name, (verb, of) => told(() => this.#act(verb, of))));
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
      notice(`${name} is loaded.`);
    }
  }

  async #unload(name) {
    const active = this.#models.find((one) => one.name === name)?.active ?? 0;
    const question = {
      title: `Unload ${name}?`,
      body: [`${name} is giving ${count(active, "answer")}; what is not finished within the grace time ends with an error.`],
      actions: [{ label: "Unload", value: "unload", kind: "danger" }],
    };
    if (active && !(await askUser(question))) return;
    await post(modelPath(name, "unload"));
    notice(`${name} is unloaded.`);
  }

  async #mayLoad(name) {
    let question;
    try {
      question = loadQuestion(await get(`/admin/plan?model=${encodeURIComponent(name)}`));
    } catch (error) {
      // The server can't say what it needs before its files are here.
      if (error.status !== 503 || !error.message.includes("not here yet")) throw error;
      question = fetchQuestion(name, error.message);
    }
    return question === null || (await askUser(question)) === "load";
  }

  async #cleanUp() {
    const [gentle, all] = [cleanupVictims(this.#models, false), cleanupVictims(this.#models, true)];
    const words = (victims) => (victims.length ? `Now: ${listed(victims)}.` : "Now: nothing to unload.");
    const choice = await askUser({
      title: "Free memory",
      body: [
        el("p", {}, el("strong", { text: "Idle models" }), " are unloaded, least recently used first; pinned ones and the one used last stay. ", words(gentle)),
        el("p", {}, el("strong", { text: "All models" }), " are unloaded, pinned ones too; answers that are running get a short grace and then end with an error. ", words(all)),
      ],
      actions: [
        { label: "Unload idle models", value: "idle", kind: "primary" },
        { label: "Unload all models", value: "all", kind: "danger" },
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
