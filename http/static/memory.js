// The memory panel: current figures, and the plot with its ranges.

import { history } from "./api.js";
import { find, say } from "./dom.js";
import { Figures } from "./figures.js";
import { bytes, moment, percent } from "./format.js";
import { t, worded } from "./language.js";
import { MemoryPlot } from "./memory_plot.js";
import { columns, LEVELS, row, Samples } from "./samples.js";

const HOUR_S = 3600;
const POINTS = 1500;
const REFRESH_MS = 60_000;

export class MemoryPanel {
  #root;
  #feed;
  #range;
  #plot;
  #figures;
  #samples = new Samples();
  // What the plot shows when it is not the live hour: recorded rows, and up to when.
  #recorded = { rows: [], spacing: 1 };
  #fetching = null;
  #refresh = 0;
  #times = [];
  #rows = [];
  #latest = null;
  #drawn = -Infinity;
  #frame = 0;

  constructor(root, feed, range) {
    this.#root = root;
    this.#feed = feed;
    this.#range = range;
    this.#figures = new Figures(root);
    this.#plot = new MemoryPlot(find("#plot", root), {
      onZoom: (from, to) => range.fix(from, to),
      onPoint: (index) => this.#point(index),
    });
    this.#ranges();
    range.addEventListener("change", () => this.#changed());
    feed.addEventListener("hello", ({ detail }) => this.#hello(detail));
    feed.addEventListener("sample", ({ detail }) => this.#sample(detail));
    this.#showRange();
  }

  hue(model) {
    return this.#figures.hue(model);
  }

  restyle() {
    this.#plot.restyle();
  }

  /** Events as marks in the plot. */
  mark(events) {
    this.#plot.events = events;
  }

  async #hello({ thresholds }) {
    this.#plot.thresholds = thresholds;
    this.#figures.thresholds = thresholds;
    // What was missed: an hour at the first time, else what happened since the connection was lost.
    const now = this.#feed.now();
    const from = Math.max(now - HOUR_S, this.#samples.last?.[0] ?? 0);
    try {
      this.#samples.fill(await history("samples", from, now, now, { points: POINTS }));
    } catch {
      // Without a record the plot begins now.
    }
    this.#changed();
  }

  #sample(sample) {
    this.#samples.push(row(sample));
    if (this.#latest?.level !== sample.level) this.#drawn = -Infinity;
    this.#latest = sample;
    this.#show();
  }

  #changed() {
    this.#showRange();
    this.#fetching?.abort();
    clearTimeout(this.#refresh);
    this.#draw();
    if (!this.#isLiveHour) this.#fetch();
  }

  get #isLiveHour() {
    return this.#range.isLive && this.#range.seconds <= HOUR_S;
  }

  async #fetch() {
    const fetching = (this.#fetching = new AbortController());
    const { from, to } = this.#range;
    try {
      const asked = { points: POINTS, signal: fetching.signal };
      const rows = await history("samples", from, to, this.#feed.now(), asked);
      if (fetching.signal.aborted) return;
      this.#recorded = { rows, spacing: (to - from) / POINTS };
      say(find("#plot-note", this.#root), rows.length ? "" : t("plot.nothing"));
    } catch (error) {
      if (error.name === "AbortError") return;
      say(find("#plot-note", this.#root), t("plot.unread", { why: error.message }));
    }
    this.#draw();
    if (this.#range.isLive) this.#refresh = setTimeout(() => this.#fetch(), REFRESH_MS);
  }

  #draw() {
    this.#drawn = -Infinity;
    this.#show();
  }

  /** Figures and plot in one frame; a window that is not seen gets none. */
  #show() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      if (this.#latest) this.#figures.show(this.#latest);
      // One pixel is worth many samples in a long range.
      const everyMs = Math.min(1000, Math.max(240, (1000 * (this.#range.to - this.#range.from)) / this.#plot.width));
      const isDue = performance.now() - this.#drawn >= everyMs;
      if (isDue && (this.#range.isLive || this.#drawn === -Infinity)) this.#plotNow();
    });
  }

  #plotNow() {
    this.#drawn = performance.now();
    const { from, to } = this.#range;
    const { rows, spacing } = this.#view(from);
    const data = columns(rows, spacing);
    this.#rows = rows;
    this.#times = data[0];
    this.#plot.show(data, from, to);
  }

  #view(from) {
    if (this.#isLiveHour) {
      say(find("#plot-note", this.#root), "");
      return { rows: this.#samples.since(from), spacing: 1 };
    }
    const { rows, spacing } = this.#recorded;
    if (!this.#range.isLive) return { rows, spacing };
    const end = rows.at(-1)?.[0] ?? 0;
    return { rows: rows.concat(this.#samples.since(end).filter(([at]) => at > end)), spacing };
  }

  #ranges() {
    const bar = find("#ranges", this.#root);
    bar.addEventListener("click", ({ target }) => {
      const { seconds, act } = target.closest("button")?.dataset ?? {};
      if (seconds) this.#range.follow(Number(seconds));
      else if (act === "night") this.#range.lastNight();
      else if (act === "in") this.#range.zoom(0.5);
      else if (act === "out") this.#range.zoom(2);
      else if (act === "live") this.#range.follow();
    });
    const keys = {
      ArrowLeft: () => this.#range.pan(-0.25),
      ArrowRight: () => this.#range.pan(0.25),
      "+": () => this.#range.zoom(0.5),
      "-": () => this.#range.zoom(2),
      Escape: () => this.#range.follow(),
    };
    find("#plot", this.#root).addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
      event.preventDefault();
      keys[event.key]();
    });
  }

  #showRange() {
    for (const button of this.#root.querySelectorAll("#ranges [data-seconds]")) {
      const chosen = this.#range.isLive && Number(button.dataset.seconds) === this.#range.seconds;
      button.setAttribute("aria-pressed", String(chosen));
    }
    find("#ranges [data-act=live]", this.#root).hidden = this.#range.isLive;
    const shown = this.#range.isLive ? "" : t("range.shown", { from: moment(this.#range.from), to: moment(this.#range.to) });
    say(find("#shown", this.#root), shown);
    this.#point(null);
  }

  /** The readout: what is under the pointer. */
  #point(index) {
    const at = index == null ? null : this.#times[index];
    const found = at == null ? null : this.#rows.find((one) => one[0] === at);
    const words = found && t("plot.point", { at: moment(found[0]), percent: percent(found[1]), level: worded("level", LEVELS[found[2]]), ours: bytes(found[3]) });
    say(find("#readout", this.#root), words ?? "");
  }
}
