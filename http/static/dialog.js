// Questions in a native <dialog>: Esc and a click beside it say no, and the focus goes back where it came from.

import { el } from "./dom.js";
import { t } from "./language.js";

/**
 * Asks and resolves to the value of the button that was pressed, null for none. Enter in a field presses the first.
 * `actions` are `{label, value, kind}`; `body` are nodes or sentences.
 */
export function askUser({ title, body = [], actions = [], refusal = t("dialog.cancel") }) {
  const nodes = body.map((one) => (typeof one === "string" ? el("p", { text: one }) : one));
  const buttons = actions.map(({ label, value, kind }) => el("button", { value, class: kind, text: label }));
  // What does harm is not where Enter goes by itself.
  const isSafe = actions.some(({ kind }) => kind === "primary");
  const no = el("button", { type: "button", autofocus: !isSafe, text: refusal, onclick: () => dialog.close("") });
  const heading = el("h2", { id: "dialog-title", text: title });
  const form = el("form", { method: "dialog" }, heading, ...nodes, el("div", { class: "actions" }, ...buttons, no));
  const dialog = el("dialog", { "aria-labelledby": "dialog-title" }, form);
  document.body.append(dialog);
  return new Promise((resolve) => {
    dialog.addEventListener("click", ({ target }) => target === dialog && dialog.close(""));
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue || null);
    });
    dialog.showModal();
  });
}
