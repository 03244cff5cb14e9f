// Asking for an API key when the server wants one, and keeping it in this browser.

import { access, hasKey, setKey } from "./api.js";
import { askUser } from "./dialog.js";
import { el } from "./dom.js";
import { t } from "./language.js";

let asking = null;

/** Calls `onKey` after a key was entered or forgotten. */
export function watchAccess(onKey) {
  access.addEventListener("unauthorized", () => askForKey(onKey, t(hasKey() ? "key.refused" : "key.asked")));
}

export async function askForKey(onKey, sentence) {
  if (asking) return;
  const input = el("input", { id: "key-input", type: "password", autocomplete: "off", required: true, spellcheck: "false" });
  asking = askUser({
    title: t("key.title"),
    body: [sentence, el("label", { for: "key-input", text: t("head.key") }), input, el("p", { class: "hint", text: t("key.only_here") })],
    actions: [
      { label: t("key.use"), value: "use", kind: "primary" },
      ...(hasKey() ? [{ label: t("key.forget"), value: "forget" }] : []),
    ],
  });
  const choice = await asking;
  asking = null;
  if (choice === null) return;
  setKey(choice === "use" ? input.value.trim() : "");
  onKey();
}
