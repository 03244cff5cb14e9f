// Which stretch of time the plot and the log show: the last so many seconds, or a fixed one.

const SHORTEST_S = 5;

export class Range extends EventTarget {
  #now;
  #seconds = 3600;
  #fixed = null;

  constructor(now) {
    super();
    this.#now = now;
  }

  get isLive() {
    return this.#fixed === null;
  }

  /** Seconds back from now; of a live range. */
  get seconds() {
    return this.#seconds;
  }

  get from() {
    return this.#fixed ? this.#fixed[0] : this.#now() - this.#seconds;
  }

  get to() {
    return this.#fixed ? this.#fixed[1] : this.#now();
  }

  follow(seconds = this.#seconds) {
    this.#seconds = seconds;
    this.#fixed = null;
    this.dispatchEvent(new Event("change"));
  }

  fix(from, to) {
    const end = Math.min(Math.max(from, to), this.#now());
    const start = Math.min(from, to, end - SHORTEST_S);
    this.#fixed = [start, end];
    this.dispatchEvent(new Event("change"));
  }

  /** Moves by a part of its own length; at the end of time it is live again. */
  pan(part) {
    const step = part * (this.to - this.from);
    if (this.to + step > this.#now()) this.follow();
    else this.fix(this.from + step, this.to + step);
  }

  zoom(factor) {
    const [middle, half] = [(this.from + this.to) / 2, (factor * (this.to - this.from)) / 2];
    this.fix(middle - half, middle + half);
  }

  /** From ten in the evening to eight in the morning, the last time that was over or is going on. */
  lastNight() {
    const end = new Date(this.#now() * 1000);
    if (end.getHours() >= 22) end.setDate(end.getDate() + 1);
    const start = new Date(end);
    start.setDate(start.getDate() - 1);
    this.fix(start.setHours(22, 0, 0, 0) / 1000, end.setHours(8, 0, 0, 0) / 1000);
  }
}
