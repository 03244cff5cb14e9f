// The downloads of models: how far each is, how fast, how long still. The server tells of them in its feed.

import { send } from "./api.js";
import { arrange, el, find, say } from "./dom.js";
import { bytes, duration } from "./format.js";
import { t } from "./language.js";
import { notice, told } from "./notices.js";

// The speed is that of the last ten seconds.
const WINDOW_S = 10;

export class Downloads {
  #root;
  #rows = new Map();
  // What has ended, so that each ending is told once; null until the server's first list.
  #ended = null;

  constructor(root, feed) {
    this.#root = root;
    feed.addEventListener("hello", () => (this.#ended = null));
    feed.addEventListener("pulls", ({ detail }) => this.#show(detail.pulls));
    // The server is silent while nothing comes, and the speed falls.
    setInterval(() => document.hidden || this.#rows.forEach((row) => row.tick()), 1000);
  }

  /** Has the server fetch a model, and resolves once it has begun: the server goes on by itself. Throws `ApiError`. */
  async start(name) {
    const reader = (await send("/api/pull", { body: { model: name } })).body.getReader();
    await reader.read();
    await reader.cancel();
  }

  #show(pulls) {
    const ended = new Set();
    for (const { model: name, done, error, begun_at: at } of pulls) {
      if (done || error) ended.add(`${name} ${at}`);
      if (done && this.#ended?.has(`${name} ${at}`) === false) notice(t("pulls.done", { name }));
    }
    this.#ended = ended;
    const shown = pulls.filter((one) => !one.done);
    for (const name of this.#rows.keys()) if (!shown.some((one) => one.model === name)) this.#rows.delete(name);
    arrange(this.#root, shown.map((one) => this.#row(one)));
  }

  #row(pull) {
    if (!this.#rows.has(pull.model)) this.#rows.set(pull.model, new Row(pull.model, () => told(() => this.start(pull.model))));
    const row = this.#rows.get(pull.model);
    row.show(pull);
    return row.node;
  }
}

class Row {
  #pull = null;
  #seen = []; // [time in s, bytes]

  constructor(name, goOn) {
    const again = el("button", { text: t("pulls.again"), "aria-label": t("pulls.again_of", { name }), onclick: goOn });
    const meter = el("div", { class: "meter", role: "progressbar", "aria-label": name, "aria-valuemin": 0, "aria-valuemax": 100 }, el("span", { class: "fill" }));
    this.node = el("li", { "data-pull": name }, el("span", { class: "name", text: name }), again, meter, el("p", { class: "facts" }));
  }

  show(pull) {
    if (pull.stage !== this.#pull?.stage || pull.begun_at !== this.#pull.begun_at) this.#seen = [];
    this.#pull = pull;
    this.tick();
  }

  tick() {
    const { stage, completed, total, error } = this.#pull;
    const part = total ? Math.min(100, (100 * completed) / total) : 0;
    const meter = find(".meter", this.node);
    meter.setAttribute("aria-valuenow", Math.floor(part));
    meter.hidden = Boolean(error);
    find(".fill", meter).style.width = `${part}%`;
    find("button", this.node).hidden = !error;
    find(".facts", this.node).classList.toggle("error", Boolean(error));
    say(find(".facts", this.node), error ? t("pulls.failed", { why: error }) : this.#words(stage, completed, total));
  }

  #words(stage, completed, total) {
    if (!total) return t("pulls.begins");
    const words = [t("pulls.part", { done: bytes(completed), total: bytes(total) })];
    if (stage === "convert") words.unshift(t("pulls.convert"));
    const speed = this.#speed(completed);
    if (speed > 0 && completed < total) {
      words.push(t("unit.per_s", { size: bytes(speed) }), t("pulls.left", { time: duration((total - completed) / speed) }));
    }
    return words.join(" · ");
  }

  /** Bytes per second; 0 before there are two figures of one stage, a second apart. */
  #speed(completed) {
    const now = performance.now() / 1000;
    this.#seen.push([now, completed]);
    while (this.#seen[0][0] < now - WINDOW_S) this.#seen.shift();
    const [[from, before]] = this.#seen;
    return now - from < 1 ? 0 : (completed - before) / (now - from);
  }
}
