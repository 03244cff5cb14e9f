// The settings of one model: its entry in the configuration file, which the server writes and reads again.

import { get, post } from "./api.js";
import { askUser } from "./dialog.js";
import { el } from "./dom.js";
import { t } from "./language.js";
import { notice } from "./notices.js";

const number = (key, attributes) => ({ key, props: { type: "number", step: "any", ...attributes }, read: Number });
const FIELDS = [
  number("temperature", { min: 0, max: 2 }),
  number("top_p", { min: 0, max: 1 }),
  number("max_tokens", { min: 1, step: 1 }),
  { key: "idle_ttl", props: { placeholder: "15m" }, read: (text) => text },
  { key: "aliases", props: {}, read: (text) => text.split(",").map((one) => one.trim()).filter(Boolean) },
  { key: "system_prefix", tag: "textarea", props: { rows: 3 }, read: (text) => text },
  { key: "thinking", tag: "select", options: { "": t("settings.thinking_default"), true: t("settings.yes"), false: t("settings.no") }, props: {}, read: (text) => text === "true" },
];

/** Asks for the settings of `name` and writes those that were changed; an empty field is taken out of the entry. */
export async function changeSettings(name) {
  const { entry } = await get(`/admin/settings?model=${encodeURIComponent(name)}`);
  const given = { ...entry, ...entry.sampling };
  const fields = FIELDS.map((field) => ({ ...field, was: given[field.key] == null ? "" : String(given[field.key]), input: control(field) }));
  for (const { input, was } of fields) input.value = was;
  const body = fields.map(({ key, input }) => el("label", {}, `${t(`settings.${key}`)} `, input));
  const choice = await askUser({ title: t("card.settings_of", { name }), body, actions: [{ label: t("settings.save"), value: "save", kind: "primary" }] });
  const changed = fields.filter(({ input, was }) => input.value.trim() !== was);
  if (choice !== "save" || !changed.length) return;
  const filled = changed.filter(({ input }) => input.value.trim());
  await post("/admin/settings", {
    model: name,
    set: Object.fromEntries(filled.map(({ key, read, input }) => [key, read(input.value.trim())])),
    unset: changed.filter((field) => !filled.includes(field)).map(({ key }) => key),
  });
  notice(t("settings.saved", { name }));
}

function control({ tag = "input", props, options = {}, key }) {
  return el(tag, { ...props, name: key }, ...Object.entries(options).map(([value, text]) => el("option", { value, text })));
}
