// The settings of one model: its entry in the configuration file, which the server writes and reads again.

import { get, post } from "./api.js";
import { askUser } from "./dialog.js";
import { el } from "./dom.js";
import { notice } from "./notices.js";

const number = (label, key, attributes) => ({ label, key, props: { type: "number", step: "any", ...attributes }, read: Number });
const FIELDS = [
  number("temperature", "temperature", { min: 0, max: 2 }),
  number("top_p", "top_p", { min: 0, max: 1 }),
  number("longest answer in tokens", "max_tokens", { min: 1, step: 1 }),
  { label: "unload after being idle for", key: "idle_ttl", props: { placeholder: "15m" }, read: (text) => text },
  { label: "other names, with commas between them", key: "aliases", props: {}, read: (text) => text.split(",").map((one) => one.trim()).filter(Boolean) },
  { label: "text before the system message", key: "system_prefix", tag: "textarea", props: { rows: 3 }, read: (text) => text },
  { label: "thinks", key: "thinking", tag: "select", options: { "": "as its template has it", true: "yes", false: "no" }, props: {}, read: (text) => text === "true" },
];

/** Asks for the settings of `name` and writes those that were changed; an empty field is taken out of the entry. */
export async function changeSettings(name) {
  const { entry } = await get(`/admin/settings?model=${encodeURIComponent(name)}`);
  const given = { ...entry, ...entry.sampling };
  const fields = FIELDS.map((field) => ({ ...field, was: given[field.key] == null ? "" : String(given[field.key]), input: control(field) }));
  for (const { input, was } of fields) input.value = was;
  const body = fields.map(({ label, input }) => el("label", {}, `${label} `, input));
  const choice = await askUser({ title: `Settings of ${name}`, body, actions: [{ label: "Save", value: "save", kind: "primary" }] });
  const changed = fields.filter(({ input, was }) => input.value.trim() !== was);
  if (choice !== "save" || !changed.length) return;
  const filled = changed.filter(({ input }) => input.value.trim());
  await post("/admin/settings", {
    model: name,
    set: Object.fromEntries(filled.map(({ key, read, input }) => [key, read(input.value.trim())])),
    unset: changed.filter((field) => !filled.includes(field)).map(({ key }) => key),
  });
  notice(`The settings of ${name} are saved and in force.`);
}

function control({ tag = "input", props, options = {}, key }) {
  return el(tag, { ...props, name: key }, ...Object.entries(options).map(([value, text]) => el("option", { value, text })));
}
