// The event log: the record of the black box and what happens now, newest first.

import { history } from "./api.js";
import { arrange, el, find, say } from "./dom.js";
import { localInput, moment } from "./format.js";
import { t, worded } from "./language.js";

const KEPT = 5000;
const FETCHED = 1000;
const SHOWN = 200;
const WEEK_S = 7 * 86400;
const RANKS = { info: 0, warning: 1, error: 2 };

export class EventLog extends EventTarget {
  #root;
  #feed;
  #range;
  // By time and id: without a black box ids begin anew with every run.
  #events = new Map();
  #rows = new WeakMap();
  #limit = SHOWN;

  /** Dispatches "change" with the events that are shown. */
  constructor(root, feed, range) {
    super();
    this.#root = root;
    this.#feed = feed;
    this.#range = range;
    feed.addEventListener("hello", () => this.#load());
    feed.addEventListener("journal", ({ detail }) => this.#live(detail));
    range.addEventListener("change", () => this.#ranged());
    for (const id of ["severity", "kind", "search"]) find(`#${id}`, root).addEventListener("input", () => this.#filtered());
    find("#pick", root).addEventListener("change", () => this.#pick());
    find("#whole-log", root).addEventListener("click", () => range.follow());
    find("#older", root).addEventListener("click", () => {
      this.#limit += SHOWN;
      this.#show();
    });
  }

  #add(events) {
    for (const event of events) this.#events.set(`${event.at} ${event.id}`, this.#events.get(`${event.at} ${event.id}`) ?? event);
    if (this.#events.size <= KEPT) return;
    const newest = [...this.#events].sort(([, a], [, b]) => a.at - b.at).slice(-KEPT);
    this.#events = new Map(newest);
  }

  #live(event) {
    this.#add([event]);
    this.#show();
    if (event.severity !== "info") say(find("#event-news", this.#root), `${worded("severity", event.severity)}: ${event.text}`);
  }

  /** What the record has for the time that is shown; the last week where that is now. */
  async #load() {
    const now = this.#feed.now();
    const [from, to] = this.#range.isLive ? [now - WEEK_S, now] : [this.#range.from, this.#range.to];
    try {
      this.#add(await history("events", from, to, now, { points: FETCHED }));
      say(find("#log-note", this.#root), "");
    } catch (error) {
      if (error.status !== 401) say(find("#log-note", this.#root), t("plot.unread", { why: error.message }));
    }
    this.#show();
  }

  #ranged() {
    const { isLive, from, to } = this.#range;
    find("#whole-log", this.#root).hidden = isLive;
    find("#from", this.#root).value = isLive ? "" : localInput(from);
    find("#to", this.#root).value = isLive ? "" : localInput(to);
    this.#filtered();
    if (!isLive) this.#load();
  }

  #pick() {
    const [from, to] = ["from", "to"].map((id) => Date.parse(find(`#${id}`, this.#root).value) / 1000);
    if (from && to && from !== to) this.#range.fix(from, to);
  }

  #filtered() {
    this.#limit = SHOWN;
    this.#show();
  }

  #show() {
    const all = [...this.#events.values()].sort((a, b) => b.at - a.at || b.id - a.id);
    this.#kinds(all);
    const inRange = this.#range.isLive ? all : all.filter(({ at }) => at >= this.#range.from && at <= this.#range.to);
    const matching = this.#matching(inRange);
    const shown = matching.slice(0, this.#limit);
    arrange(find("#events-list", this.#root), shown.map((event) => this.#row(event)));
    find("#older", this.#root).hidden = matching.length <= shown.length;
    say(find(".count", this.#root), matching.length === inRange.length ? `${inRange.length}` : t("events.some", { n: matching.length, all: inRange.length }));
    find("#no-events", this.#root).hidden = shown.length > 0;
    this.dispatchEvent(new CustomEvent("change", { detail: inRange }));
  }

  #matching(events) {
    const least = RANKS[find("#severity", this.#root).value];
    const kind = find("#kind", this.#root).value;
    const words = find("#search", this.#root).value.toLowerCase().split(/\s+/).filter(Boolean);
    return events.filter((event) => {
      const text = `${event.kind} ${event.text}`.toLowerCase();
      return RANKS[event.severity] >= least && (!kind || event.kind === kind) && words.every((word) => text.includes(word));
    });
  }

  #kinds(events) {
    const select = find("#kind", this.#root);
    const known = new Set([...select.options].map((one) => one.value));
    const missing = new Set(events.map((one) => one.kind).filter((kind) => !known.has(kind)));
    for (const kind of [...missing].sort()) select.append(el("option", { value: kind, text: worded("kind", kind) }));
  }

  #row(event) {
    if (!this.#rows.has(event)) {
      const time = el("time", { datetime: new Date(event.at * 1000).toISOString(), text: moment(event.at) });
      const severity = el("span", { class: "severity", text: worded("severity", event.severity) });
      const text = el("span", { class: "text", text: event.text, title: worded("kind", event.kind) });
      this.#rows.set(event, el("li", { class: event.severity, "data-kind": event.kind }, time, severity, text));
    }
    return this.#rows.get(event);
  }
}
