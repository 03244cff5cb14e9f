// Figures and times in words of the page's language. A GB is 2**30 bytes, as everywhere in Plimsoll.

import { language, t } from "./language.js";

const MB = 2 ** 20;
const GB = 2 ** 30;
const LOCALE = { en: "en-GB", ru: "ru" }[language];
const pad = (number) => String(number).padStart(2, "0");
const formats = [0, 1].map((digits) => new Intl.NumberFormat(LOCALE, { minimumFractionDigits: digits, maximumFractionDigits: digits }));

/** With `digits` (0 or 1) behind the point. */
export const number = (value, digits = 0) => formats[digits].format(value);

export function bytes(count) {
  if (count == null) return "–";
  if (count >= 100 * GB) return t("unit.gb", { n: number(count / GB) });
  if (count >= 0.995 * GB) return t("unit.gb", { n: number(count / GB, 1) });
  return t("unit.mb", { n: number(count / MB) });
}

export const gigabytes = (count) => bytes(count * GB);

export const percent = (value) => (value == null ? "–" : `${number(value, value < 99.95 ? 1 : 0)} %`);

/** Tokens per second. */
export const rate = (value) => t("unit.tokens_per_s", { n: number(value, value < 100 ? 1 : 0) });

/** A short time, to the millisecond below a second. */
export function seconds(value) {
  if (value == null) return "–";
  return value < 1 ? t("unit.ms", { n: number(value * 1000) }) : t("unit.s", { n: number(value, 1) });
}

/** A length of time in its two largest units. */
export function duration(length) {
  const whole = Math.max(0, Math.round(length));
  const units = (...parts) => parts.map(([name, n]) => t(`unit.${name}`, { n })).join(" ");
  if (whole < 60) return units(["s", whole]);
  const [minutes, hours, days] = [Math.floor(whole / 60), Math.floor(whole / 3600), Math.floor(whole / 86400)];
  if (hours < 1) return minutes < 5 && whole % 60 ? units(["min", minutes], ["s", whole % 60]) : units(["min", minutes]);
  if (days < 1) return minutes % 60 ? units(["h", hours], ["min", minutes % 60]) : units(["h", hours]);
  return hours % 24 ? units(["d", days], ["h", hours % 24]) : units(["d", days]);
}

/** Coarse enough not to change every second. */
export function ago(length) {
  if (length < 5) return t("time.now");
  return t("time.ago", { time: duration(Math.floor(length / (length < 60 ? 5 : 60)) * (length < 60 ? 5 : 60)) });
}

export function timeOfDay(at) {
  const date = new Date(at * 1000);
  return `${pad(date.getHours())}:${pad(date.getMinutes())}:${pad(date.getSeconds())}`;
}

const isToday = (date) => date.toDateString() === new Date().toDateString();

export const dayMonth = new Intl.DateTimeFormat(LOCALE, { day: "numeric", month: "short" });

/** The time, with the date unless it is today's. */
export function moment(at, withSeconds = true) {
  const date = new Date(at * 1000);
  const time = withSeconds ? timeOfDay(at) : timeOfDay(at).slice(0, 5);
  return isToday(date) ? time : `${dayMonth.format(date)} ${time}`;
}

/** "a", "a and b", "a, b and c". */
export function listed(words) {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")}${t("list.and")}${words.at(-1)}`;
}

/** For `<input type="datetime-local">`. */
export function localInput(at) {
  const date = new Date(at * 1000);
  return `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())}T${timeOfDay(at).slice(0, 5)}`;
}
