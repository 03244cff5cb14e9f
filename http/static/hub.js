// The search for models at the hub, by way of the server, and the button that downloads one.

import { get } from "./api.js";
import { askUser } from "./dialog.js";
import { el, find, say } from "./dom.js";
import { bytes, number } from "./format.js";
import { t } from "./language.js";
import { notice } from "./notices.js";

const SHOWN = 20;
const REPO = /^[\w.-]+\/[\w.-]+(@[\w./-]+)?$/;
const SENTENCES = { hub_unreachable: "hub.unreachable", hub_offline: "hub.offline" };

export class HubPanel {
  #root;
  #models;
  #downloads;
  #asked = 0;
  #found = [];
  #budget = 0;

  constructor(root, models, downloads) {
    this.#root = root;
    this.#models = models;
    this.#downloads = downloads;
    find("form", root).addEventListener("submit", (event) => {
      event.preventDefault();
      this.#search(find("#hub-words", root).value.trim());
    });
    models.addEventListener("change", () => this.#mark());
  }

  async #search(words) {
    if (!words) return;
    const asked = ++this.#asked; // the answer to an earlier search may come later
    this.#note(t("hub.searching"));
    try {
      const { budget_bytes: budget, models } = await get(`/admin/search?${new URLSearchParams({ words, limit: SHOWN })}`);
      if (asked === this.#asked) this.#show(words, models, budget);
    } catch (error) {
      if (asked !== this.#asked) return;
      this.#list([]);
      this.#note(sentence(error));
    }
  }

  #show(words, models, budget) {
    this.#budget = budget;
    const isNamed = REPO.test(words) && !models.some((one) => one.name === words);
    this.#list(isNamed ? [{ name: words, isNamed }, ...models] : models);
    this.#note(this.#found.length ? t("hub.budget", { size: bytes(budget) }) : t("hub.nothing"));
  }

  #list(found) {
    this.#found = found;
    const rows = found.map((one) => {
      const { name } = one;
      const button = el("button", { text: t("hub.download"), "aria-label": t("hub.download_of", { name }), onclick: () => this.#download(one, button) });
      return el("li", { "data-repo": name }, el("span", { class: "name", text: name }), button, el("p", { class: "facts minor", text: facts(one) }));
    });
    find("#hub-results", this.#root).replaceChildren(...rows);
    this.#mark();
  }

  /** Says of each whether it is here by now. */
  #mark() {
    const here = new Set(this.#models.models.map((one) => one.name));
    for (const row of find("#hub-results", this.#root).children) {
      const isHere = here.has(row.dataset.repo);
      say(find("button", row), t(isHere ? "hub.here" : "hub.download"));
      // Not `disabled`, which would take the focus away.
      find("button", row).setAttribute("aria-disabled", String(isHere));
    }
  }

  async #download(one, button) {
    if (button.ariaDisabled === "true") return;
    const question = {
      title: t("hub.question", one),
      body: [t("hub.question_body", { size: bytes(one.size_bytes), budget: bytes(this.#budget) })],
      actions: [{ label: t("hub.all_the_same"), value: "fetch" }],
    };
    if (one.fits === false && (await askUser(question)) !== "fetch") return;
    button.setAttribute("aria-disabled", "true");
    try {
      await this.#downloads.start(one.name);
    } catch (error) {
      notice(sentence(error), "error");
    }
    this.#mark();
  }

  #note(text) {
    say(find("#hub-note", this.#root), text);
  }
}

function sentence(error) {
  if (error.status === 403) return t("hub.admin");
  return SENTENCES[error.code] ? t(SENTENCES[error.code]) : error.message;
}

function facts({ size_bytes: size, fits, downloads, gated, isNamed }) {
  if (isNamed) return t("hub.as_named");
  const words = size == null ? [t("hub.unsure")] : [bytes(size), t(fits ? "hub.fits" : "hub.too_large")];
  words.push(t("hub.downloads", { n: downloads }).replace(String(downloads), number(downloads)));
  if (gated) words.push(t("hub.gated"));
  return words.join(" · ");
}
