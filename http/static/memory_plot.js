// The plot of memory over time: uPlot, the three thresholds, marks for events. Draws what it is given.

import { dayMonth, moment, timeOfDay } from "./format.js";
import { t, worded } from "./language.js";
import { touchZoom } from "./plot_touch.js";

const { uPlot } = window; // a classic script, loaded before the modules
const HEIGHT = { wide: 260, narrow: 190 };
const INKS = ["ink", "muted", "grid", "ours", "ours-fill", "normal", "warning", "critical", "emergency", "panel"];

export class MemoryPlot {
  #root;
  #plot = null;
  #data = [[], [], []];
  #range = [0, 1];
  #thresholds = { warning: 85, critical: 95, emergency: 98 };
  #events = [];
  #colors = {};
  #onZoom;
  #onPoint;

  /** `onZoom(from, to)` after a drag; `onPoint(index)` where the pointer is, null when it left. */
  constructor(root, { onZoom, onPoint }) {
    this.#root = root;
    this.#onZoom = onZoom;
    this.#onPoint = onPoint;
    this.#build();
    new ResizeObserver(() => this.#plot.setSize(this.#size())).observe(root);
  }

  get width() {
    return this.#plot.bbox.width / devicePixelRatio;
  }

  /** `data` as of `columns` in samples.js, shown from `from` to `to`. */
  show(data, from, to) {
    this.#data = data;
    this.#range = [from, to];
    this.#plot.setData(data, false);
    this.#plot.setScale("x", { min: from, max: to });
  }

  set thresholds(thresholds) {
    this.#thresholds = thresholds;
    this.#plot.redraw(false);
  }

  /** `[{at, severity}]`, drawn as ticks at the foot. */
  set events(events) {
    this.#events = events;
    this.#plot.redraw(false);
  }

  /** Takes the colours of the page again. */
  restyle() {
    this.#plot.destroy();
    this.#build();
  }

  #build() {
    this.#colors = this.#pickColors();
    this.#plot = new uPlot(this.#options(), this.#data, this.#root);
    this.#plot.setScale("x", { min: this.#range[0], max: this.#range[1] });
    const height = () => this.#plot.over.clientHeight;
    touchZoom(this.#plot.over, {
      onPoint: (left) => this.#plot.setCursor({ left, top: height() / 2 }),
      // As the mouse has it: the hook zooms once the selection is told to be done.
      onSelect: (from, to, isDone) => this.#plot.setSelect({ left: from, width: to - from, top: 0, height: height() }, isDone),
    });
  }

  #size() {
    const width = Math.max(200, this.#root.clientWidth);
    return { width, height: width < 560 ? HEIGHT.narrow : HEIGHT.wide };
  }

  #options() {
    const font = `11px ${getComputedStyle(this.#root).fontFamily}`;
    const axis = {
      stroke: () => this.#colors.muted,
      font,
      grid: { stroke: () => this.#colors.grid, width: 1 },
      ticks: { show: false },
    };
    return {
      ...this.#size(),
      legend: { show: false },
      cursor: { drag: { x: true, y: false, setScale: false }, points: { size: 7 }, y: false },
      select: { show: true },
      padding: [8, 18, 0, 0],
      scales: { x: { time: true }, y: { range: (_plot, _min, max) => [0, Math.max(100, max || 0)] } },
      axes: [
        { ...axis, space: 80, size: 28, values: (_plot, ticks, _axis, _space, step) => ticks.map((at) => label(at, step)) },
        { ...axis, size: 44, values: (_plot, ticks) => ticks.map((value) => `${value} %`) },
      ],
      series: [
        {},
        { stroke: () => this.#colors.ours, fill: () => this.#colors["ours-fill"], width: 1, points: { show: false } },
        { stroke: () => this.#inkOfLevels(), width: 1.75, points: { show: false } },
      ],
      hooks: {
        drawClear: [() => this.#drawBands()],
        draw: [() => this.#drawLines()],
        setSelect: [(plot) => this.#selected(plot)],
        setCursor: [(plot) => this.#onPoint(plot.cursor.idx ?? null)],
      },
    };
  }

  #selected(plot) {
    const { left, width } = plot.select;
    if (width < 4) return;
    const [from, to] = [plot.posToVal(left, "x"), plot.posToVal(left + width, "x")];
    plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    this.#onZoom(from, to);
  }

  /** The line takes the colour of the level that it is in. */
  #inkOfLevels() {
    const { ctx, bbox, scales } = this.#plot;
    if (scales.y.max == null || !bbox.height) return this.#colors.ink;
    const ink = ctx.createLinearGradient(0, bbox.top + bbox.height, 0, bbox.top);
    let below = "normal";
    ink.addColorStop(0, this.#colors[below]);
    for (const level of ["warning", "critical", "emergency"]) {
      const at = Math.min(1, this.#thresholds[level] / scales.y.max);
      ink.addColorStop(at, this.#colors[below]);
      ink.addColorStop(at, this.#colors[level]);
      below = level;
    }
    return ink;
  }

  #drawBands() {
    const { ctx, bbox } = this.#plot;
    const { warning, critical, emergency } = this.#thresholds;
    const edges = { warning: critical, critical: emergency, emergency: this.#plot.scales.y.max };
    ctx.save();
    for (const [level, from] of Object.entries({ warning, critical, emergency })) {
      const [top, bottom] = [this.#plot.valToPos(edges[level], "y", true), this.#plot.valToPos(from, "y", true)];
      ctx.globalAlpha = 0.1;
      ctx.fillStyle = this.#colors[level];
      ctx.fillRect(bbox.left, top, bbox.width, bottom - top);
    }
    ctx.restore();
  }

  #drawLines() {
    const { ctx, bbox } = this.#plot;
    const scale = devicePixelRatio;
    ctx.save();
    ctx.lineWidth = scale;
    ctx.font = `600 ${10 * scale}px ${getComputedStyle(this.#root).fontFamily}`;
    for (const [level, from] of Object.entries(this.#thresholds)) {
      const y = Math.round(this.#plot.valToPos(from, "y", true)) + 0.5;
      ctx.strokeStyle = ctx.fillStyle = this.#colors[level];
      ctx.setLineDash([4 * scale, 4 * scale]);
      ctx.beginPath();
      ctx.moveTo(bbox.left, y);
      ctx.lineTo(bbox.left + bbox.width, y);
      ctx.stroke();
    }
    this.#drawNames(ctx, bbox, scale);
    ctx.setLineDash([]);
    for (const { at, severity } of this.#events) {
      const x = this.#plot.valToPos(at, "x", true);
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.strokeStyle = this.#colors[{ error: "critical", warning: "warning" }[severity] ?? "muted"];
      const height = (severity === "info" ? 5 : 9) * scale;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top + bbox.height - height);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
    ctx.restore();
  }

  /** The thresholds' names at the left, from below upwards and never over one another. */
  #drawNames(ctx, bbox, scale) {
    ctx.textBaseline = "bottom";
    ctx.textAlign = "left";
    let x = bbox.left + 6 * scale;
    let lastY = Infinity;
    for (const [level, from] of Object.entries(this.#thresholds)) {
      const line = this.#plot.valToPos(from, "y", true);
      // Above its line, or below where there is no room.
      const y = line - bbox.top < 13 * scale ? line + 13 * scale : line - 2 * scale;
      const name = t("memory.threshold", { level: worded("level", level), n: from });
      if (lastY - y >= 12 * scale) x = bbox.left + 6 * scale;
      const { width } = ctx.measureText(name);
      // A ground of its own, since the line of the level above may run through it.
      ctx.fillStyle = this.#colors.panel;
      ctx.fillRect(x - 2 * scale, y - 11 * scale, width + 4 * scale, 11 * scale);
      ctx.fillStyle = this.#colors[level];
      ctx.fillText(name, x, y);
      x += width + 10 * scale;
      lastY = y;
    }
  }

  /** A canvas knows no CSS variables: the browser resolves them on an element. */
  #pickColors() {
    const probe = this.#root.appendChild(document.createElement("i"));
    const colors = {};
    for (const name of INKS) {
      probe.style.color = `var(--${name})`;
      colors[name] = getComputedStyle(probe).color;
    }
    probe.remove();
    return colors;
  }
}

function label(at, step) {
  if (step < 60) return timeOfDay(at);
  const date = new Date(at * 1000);
  return step >= 86400 || (date.getHours() === 0 && date.getMinutes() === 0)
    ? dayMonth.format(date)
    : moment(at, false).slice(-5);
}
