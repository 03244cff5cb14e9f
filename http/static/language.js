// The page's language, one of the log's two: the browser's, unless the reader has chosen one.

import { WORDS } from "./words.js";

const KEPT = "plimsoll.language";
const LANGUAGES = ["en", "ru"];
const ATTRIBUTES = { label: "aria-label", placeholder: "placeholder", title: "title" };

export const language = choose();
const column = LANGUAGES.indexOf(language);
const plurals = new Intl.PluralRules(language);
const FORMS = { en: ["one", "other"], ru: ["one", "few", "many"] }[language];

function choose() {
  const kept = localStorage.getItem(KEPT);
  if (LANGUAGES.includes(kept)) return kept;
  return navigator.languages.map((one) => one.slice(0, 2)).find((one) => LANGUAGES.includes(one)) ?? "en";
}

/** The text of `key` with `values` put in; `n` chooses the form where the text has forms. */
export function t(key, values = {}) {
  let text = WORDS[key][column];
  if (Array.isArray(text)) text = text[Math.max(0, FORMS.indexOf(plurals.select(values.n)))];
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** The text of a word of the server's (a level, a state), or the word itself where the page has none for it. */
export const worded = (group, word) => (WORDS[`${group}.${word}`] ? t(`${group}.${word}`) : word);

/** Puts the words into the document: `data-t` is the key of a text, `data-t-label` and others that of an attribute. */
export function fill(root = document) {
  document.documentElement.lang = language;
  for (const node of root.querySelectorAll("[data-t]")) node.textContent = t(node.dataset.t);
  for (const [name, attribute] of Object.entries(ATTRIBUTES)) {
    for (const node of root.querySelectorAll(`[data-t-${name}]`)) node.setAttribute(attribute, t(node.getAttribute(`data-t-${name}`)));
  }
}

/** Shows the page anew in the other language. What is kept in the browser stays. */
export function switchLanguage() {
  localStorage.setItem(KEPT, LANGUAGES[1 - column]);
  location.reload();
}
