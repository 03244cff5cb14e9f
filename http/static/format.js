// Figures and times in words. A GB is 2**30 bytes, as everywhere in Plimsoll.

const MB = 2 ** 20;
const GB = 2 ** 30;
const pad = (number) => String(number).padStart(2, "0");

export function bytes(count) {
  if (count == null) return "–";
  if (count >= 100 * GB) return `${Math.round(count / GB)} GB`;
  if (count >= 0.995 * GB) return `${(count / GB).toFixed(1)} GB`;
  return `${Math.round(count / MB)} MB`;
}

export const gigabytes = (count) => bytes(count * GB);

export const percent = (value) => (value == null ? "–" : `${value.toFixed(value < 99.95 ? 1 : 0)} %`);

/** A length of time in its two largest units. */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  const [minutes, hours, days] = [Math.floor(whole / 60), Math.floor(whole / 3600), Math.floor(whole / 86400)];
  if (hours < 1) return minutes < 5 && whole % 60 ? `${minutes} min ${whole % 60} s` : `${minutes} min`;
  if (days < 1) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  return hours % 24 ? `${days} d ${hours % 24} h` : `${days} d`;
}

/** Coarse enough not to change every second. */
export function ago(seconds) {
  if (seconds < 5) return "just now";
  return `${duration(Math.floor(seconds / (seconds < 60 ? 5 : 60)) * (seconds < 60 ? 5 : 60))} ago`;
}

export function timeOfDay(at) {
  const date = new Date(at * 1000);
  return `${pad(date.getHours())}:${pad(date.getMinutes())}:${pad(date.getSeconds())}`;
}

const isToday = (date) => date.toDateString() === new Date().toDateString();
const dayMonth = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

/** The time, with the date unless it is today's. */
export function moment(at, seconds = true) {
  const date = new Date(at * 1000);
  const time = seconds ? timeOfDay(at) : timeOfDay(at).slice(0, 5);
  return isToday(date) ? time : `${dayMonth.format(date)} ${time}`;
}

/** "1 request", "2 requests". */
export const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

/** "a", "a and b", "a, b and c". */
export function listed(words) {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}

/** For `<input type="datetime-local">`. */
export function localInput(at) {
  const date = new Date(at * 1000);
  return `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())}T${timeOfDay(at).slice(0, 5)}`;
}
