// Asking for an API key when the server wants one, and keeping it in this browser.

import { access, hasKey, setKey } from "./api.js";
import { askUser } from "./dialog.js";
import { el } from "./dom.js";

let asking = null;

/** Calls `onKey` after a key was entered or forgotten. */
export function watchAccess(onKey) {
  access.addEventListener("unauthorized", () => askForKey(onKey, hasKey() ? "The server does not accept the key that was entered." : "This server asks for an API key."));
}

export async function askForKey(onKey, sentence) {
  if (asking) return;
  const input = el("input", { id: "key-input", type: "password", autocomplete: "off", required: true, spellcheck: "false" });
  asking = askUser({
    title: "API key",
    body: [sentence, el("label", { for: "key-input", text: "Key" }), input, el("p", { class: "hint", text: "It is kept in this browser only." })],
    actions: [
      { label: "Use this key", value: "use", kind: "primary" },
      ...(hasKey() ? [{ label: "Forget the key", value: "forget" }] : []),
    ],
  });
  const choice = await asking;
  asking = null;
  if (choice === null) return;
  setKey(choice === "use" ? input.value.trim() : "");
  onKey();
}
