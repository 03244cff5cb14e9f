// The live feed: one connection to /admin/events that comes back by itself.

import { ApiError, send } from "./api.js";
import { language, t } from "./language.js";
import { frames } from "./sse.js";

const FIRST_RETRY_MS = 500;
const LONGEST_RETRY_MS = 5000;
// Samples come every second at the least: a connection this silent is dead, though nobody said so.
const SILENCE_MS = 15_000;

/**
 * Dispatches "hello", "sample", "models", "pulls" and "journal" with the server's data as `detail`, and "connection" with
 * `{state: "live" | "gone" | "refused", reason, retryMs}`.
 */
export class Feed extends EventTarget {
  #abort = null;
  #failures = 0;
  #timer = 0;
  /** Server time less this browser's, in seconds. */
  skew = 0;

  now() {
    return Date.now() / 1000 + this.skew;
  }

  /** Connects now, whatever was going on. */
  async start() {
    clearTimeout(this.#timer);
    this.#abort?.abort();
    const abort = (this.#abort = new AbortController());
    let reason = t("error.closed");
    try {
      await this.#follow(abort);
    } catch (error) {
      reason = error.name === "AbortError" ? t("error.silent") : error.message;
      if (error instanceof ApiError && (error.status === 401 || error.status === 403)) {
        this.#tell("connection", { state: "refused", reason });
        return;
      }
    }
    if (abort !== this.#abort) return; // started anew meanwhile
    const retryMs = Math.min(LONGEST_RETRY_MS, FIRST_RETRY_MS * 2 ** this.#failures++) * (0.8 + 0.4 * Math.random());
    this.#tell("connection", { state: "gone", reason, retryMs });
    this.#timer = setTimeout(() => this.start(), retryMs);
  }

  async #follow(abort) {
    let silence = 0;
    const heard = () => {
      clearTimeout(silence);
      silence = setTimeout(() => abort.abort(), SILENCE_MS);
    };
    try {
      heard();
      for await (const frame of frames(await send(`/admin/events?language=${language}`, { signal: abort.signal }))) {
        heard();
        if (frame.data === undefined) continue;
        const detail = JSON.parse(frame.data);
        if (frame.event === "hello") {
          this.#failures = 0;
          this.skew = detail.now - Date.now() / 1000;
          this.#tell("connection", { state: "live" });
        }
        this.#tell(frame.event, detail);
      }
    } finally {
      clearTimeout(silence);
    }
  }

  #tell(kind, detail) {
    this.dispatchEvent(new CustomEvent(kind, { detail }));
  }
}
