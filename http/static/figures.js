// The current figures: how full it is, by whose reading, and who holds what.

import { el, find, say } from "./dom.js";
import { bytes, duration, number, percent } from "./format.js";
import { t, worded } from "./language.js";

const SOON_S = 300;

export class Figures {
  #root;
  #thresholds = null;
  #hues = new Map();

  constructor(root) {
    this.#root = root;
  }

  set thresholds(thresholds) {
    this.#thresholds = thresholds;
    for (const [level, value] of Object.entries(thresholds)) {
      const mark = find(`#hold .mark.${level}`, this.#root);
      mark.style.left = `${value}%`;
      mark.title = t("memory.mark", { level: worded("level", level), n: value });
    }
  }

  /** One of six hues, the same for a model as long as the page is open. */
  hue(model) {
    if (!this.#hues.has(model)) this.#hues.set(model, this.#hues.size % 6);
    return this.#hues.get(model);
  }

  show(sample) {
    const part = (id) => find(`#${id}`, this.#root);
    const ours = sample.front + Object.values(sample.models).reduce((sum, one) => sum + one, 0);
    say(part("percent"), sample.percent == null ? "–" : number(sample.percent, 1));
    say(part("level"), worded("level", sample.level));
    this.#root.dataset.level = sample.level;
    say(part("trend"), trend(sample));
    say(part("admission"), worded("memory", sample.admission));
    if (sample.total == null) return; // memory can't be read; the trend says why
    say(part("used"), t("memory.of", { part: bytes(sample.used), whole: bytes(sample.total) }));
    say(part("ours"), `${bytes(ours)} (${percent((100 * ours) / sample.total)})`);
    say(part("room"), this.#room(sample));
    this.#sources(sample);
    this.#hold(sample, ours);
  }

  #room(sample) {
    if (!this.#thresholds) return "–";
    const left = (sample.total * this.#thresholds.warning) / 100 - sample.used;
    return left > 0 ? bytes(left) : t("memory.over", { size: bytes(-left) });
  }

  #sources(sample) {
    const list = find("#sources", this.#root);
    const rows = Object.entries(sample.sources).map(([name, one]) => {
      const binds = name === sample.source;
      const line = list.querySelector(`[data-name="${CSS.escape(name)}"]`) ?? source(name);
      line.classList.toggle("binds", binds);
      say(find(".name", line), binds ? t("memory.binds", { name }) : name);
      say(find(".value", line), percent(one.percent));
      line.title = t("memory.of", { part: bytes(one.used), whole: bytes(one.total) });
      find(".fill", line).style.width = `${Math.min(100, one.percent)}%`;
      return line;
    });
    if (rows.length !== list.children.length || rows.some((one) => !one.isConnected)) list.replaceChildren(...rows);
  }

  /** Who holds what, as parts of the whole that binds. */
  #hold(sample, ours) {
    const bar = find("#hold .parts", this.#root);
    const names = find("#holders", this.#root);
    const models = Object.entries(sample.models).filter(([, held]) => held > 0);
    const parts = [
      ["others", t("memory.others"), Math.max(0, sample.used - ours)],
      ["server", t("memory.server"), sample.front],
      ...models.map(([name, held]) => [`hue-${this.hue(name)}`, name, held]),
    ];
    while (bar.children.length < parts.length) {
      bar.append(el("span"));
      names.append(el("li", {}, el("i"), el("span")));
    }
    while (bar.children.length > parts.length) {
      bar.lastChild.remove();
      names.lastChild.remove();
    }
    parts.forEach(([kind, name, held], at) => {
      const [node, swatch] = [bar.children[at], find("i", names.children[at])];
      if (node.className !== kind) node.className = swatch.className = kind;
      node.style.width = `${(100 * held) / sample.total}%`;
      names.children[at].hidden = held === 0;
      say(swatch.nextSibling, `${name} ${bytes(held)}`);
    });
  }
}

function source(name) {
  return el(
    "li",
    { "data-name": name },
    el("span", { class: "name", text: name }),
    el("span", { class: "meter", "aria-hidden": "true" }, el("span", { class: "fill" })),
    el("span", { class: "value" }),
  );
}

function trend(sample) {
  if (sample.problems.length) return sample.problems.join("; ");
  const seconds = sample.seconds_to_critical;
  return seconds == null || seconds > SOON_S ? "" : t("memory.soon", { time: duration(seconds) });
}
