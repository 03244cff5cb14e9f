// Which conversation is open: the list of those that are kept, and the buttons new, rename and delete.

import { list, remove, rename } from "./conversations.js";
import { askUser } from "./dialog.js";
import { el, find } from "./dom.js";
import { t } from "./language.js";

// Of this window: another one may have another conversation open.
const OPEN = "plimsoll.open";

export class ChatList {
  #root;
  #open = sessionStorage.getItem(OPEN) ?? list()[0]?.id ?? "";

  /** `onOpen(id)` when another one is chosen, "" for a new one; `onTitle(title)` and `onDelete()` for the open one. */
  constructor(root, { onOpen, onTitle, onDelete }) {
    this.#root = root;
    const choose = (id) => {
      this.show(id);
      onOpen(id);
    };
    find("#conversations", root).addEventListener("change", ({ target }) => choose(target.value));
    find("#new", root).addEventListener("click", () => choose(""));
    find("#rename", root).addEventListener("click", () => this.#rename(onTitle));
    find("#delete", root).addEventListener("click", async () => {
      if (!(await this.#delete())) return;
      onDelete();
      choose(list()[0]?.id ?? "");
    });
    addEventListener("storage", () => this.show());
    this.show();
  }

  /** The id of the open one, "" before it has a message. */
  get open() {
    return this.#open;
  }

  /** Shows what is kept, with `id` as the open one; `title` is that of one that is not kept yet. */
  show(id = this.#open, title = "") {
    this.#open = id;
    sessionStorage.setItem(OPEN, id);
    const kept = list();
    const isKept = kept.some((one) => one.id === id);
    const select = find("#conversations", this.#root);
    const options = kept.map((one) => el("option", { value: one.id, text: one.title }));
    if (!isKept) options.unshift(el("option", { value: id, text: title || t("chat.untitled") }));
    select.replaceChildren(...options);
    select.value = id;
    for (const name of ["#rename", "#delete"]) find(name, this.#root).disabled = !isKept;
  }

  async #rename(onTitle) {
    const { id, title } = this.#head();
    const input = el("input", { value: title, required: true, maxlength: 100 });
    const choice = await askUser({
      title: t("chat.rename_title"),
      body: [el("label", {}, `${t("chat.name")} `, input)],
      actions: [{ label: t("chat.rename"), value: "rename", kind: "primary" }],
    });
    if (choice !== "rename" || !input.value.trim()) return;
    rename(id, input.value.trim());
    if (id === this.#open) onTitle(input.value.trim());
    this.show();
  }

  async #delete() {
    const { id, title } = this.#head();
    const choice = await askUser({
      title: t("chat.delete_title", { title }),
      body: [t("chat.delete_body")],
      actions: [{ label: t("chat.delete"), value: "delete", kind: "danger" }],
    });
    if (choice === "delete") remove(id);
    return choice === "delete";
  }

  #head() {
    return list().find((one) => one.id === this.#open);
  }
}
