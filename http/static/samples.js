// The last hour of samples, and columns for the plot made of them. Knows neither the page nor the network.

export const LEVELS = ["normal", "warning", "critical", "emergency"];
const HOUR_S = 3600;
const MAX = 4 * HOUR_S; // the feed sends at most 4 per second
// A recorded sample this near to a live one tells nothing new.
const NEAR_S = 1.5;
const GAP_S = 10;

/** A sample of the feed as a row of the history: [at, percent, level, ours, used, total]. */
export function row(sample) {
  const models = Object.values(sample.models).reduce((sum, one) => sum + one, 0);
  return [sample.at, sample.percent, LEVELS.indexOf(sample.level), sample.front + models, sample.used, sample.total];
}

/** Rows in the order of their time, an hour of them and some slack. */
export class Samples {
  #rows = [];

  get last() {
    return this.#rows.at(-1);
  }

  push(one) {
    if (one[1] == null) return; // memory could not be read just then
    if (this.#rows.length && one[0] <= this.last[0]) return;
    this.#rows.push(one);
    // Cut in steps: moving all of them for every sample would be wasteful.
    if (this.#rows.length > MAX * 1.1) this.#rows.splice(0, this.#rows.length - MAX);
  }

  /** Puts recorded rows where no live ones are. */
  fill(recorded) {
    const live = this.#rows;
    const merged = [];
    let at = 0;
    for (const one of recorded) {
      while (at < live.length && live[at][0] <= one[0]) merged.push(live[at++]);
      const before = merged.length && one[0] - merged.at(-1)[0] < NEAR_S && at > 0 && merged.at(-1) === live[at - 1];
      const after = at < live.length && live[at][0] - one[0] < NEAR_S;
      if (!before && !after && !(merged.length && merged.at(-1)[0] >= one[0])) merged.push(one);
    }
    this.#rows = merged.concat(live.slice(at));
  }

  /** The rows from `from` on, and one before it so that the line reaches the edge. */
  since(from) {
    let low = 0;
    let high = this.#rows.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#rows[middle][0] < from) low = middle + 1;
      else high = middle;
    }
    return this.#rows.slice(Math.max(0, low - 1));
  }
}

/** [times, our percent, percent] of rows; where nothing was recorded for long the line is broken. */
export function columns(rows, spacingS = 1) {
  const gap = Math.max(GAP_S, 4 * spacingS);
  const [times, percents, ours] = [[], [], []];
  let before = Infinity;
  for (const [at, percent, , footprints, , total] of rows) {
    if (at - before > gap) {
      times.push((before + at) / 2);
      percents.push(null);
      ours.push(null);
    }
    times.push(at);
    percents.push(percent);
    ours.push(total ? (100 * footprints) / total : 0);
    before = at;
  }
  return [times, ours, percents];
}
