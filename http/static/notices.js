// Short messages at the foot of the page, read out by screen readers.

import { el, find } from "./dom.js";
import { t } from "./language.js";

const SHOWN_MS = { info: 6000, error: 15_000 };

export function notice(text, kind = "info") {
  const close = el("button", { class: "plain", "aria-label": t("notice.dismiss"), text: "×", onclick: () => one.remove() });
  const one = el("div", { class: `notice ${kind}` }, el("span", { text }), close);
  find("#notices").append(one);
  setTimeout(() => one.remove(), SHOWN_MS[kind]);
}

/** Runs `act`; a failure becomes a notice. Resolves to undefined then. */
export async function told(act) {
  try {
    return await act();
  } catch (error) {
    if (error.name !== "AbortError") notice(error.message, "error");
    return undefined;
  }
}
