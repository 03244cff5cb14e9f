// Requests to the server, with the API key if there is one, and every failure as a sentence.

import { language, t } from "./language.js";

const KEY = "plimsoll.key";

export class ApiError extends Error {
  /** `code` is the server's word for what went wrong, "" where it has said none. */
  constructor(message, status = 0, code = "") {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Hears "unauthorized" whenever the server asks for a key. */
export const access = new EventTarget();

export const hasKey = () => localStorage.getItem(KEY) !== null;

export function setKey(key) {
  if (key) localStorage.setItem(KEY, key);
  else localStorage.removeItem(KEY);
}

/** A response with a good status. Throws `ApiError`, or the AbortError of `signal`. */
export async function send(path, { body, signal, method = body === undefined ? "GET" : "POST" } = {}) {
  const key = localStorage.getItem(KEY);
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body), cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(t("error.no_answer"));
  }
  if (response.ok) return response;
  if (response.status === 401) access.dispatchEvent(new Event("unauthorized"));
  const { message, code } = await reason(response);
  throw new ApiError(message, response.status, code);
}

export const get = async (path, options) => (await send(path, options)).json();
export const post = async (path, body = {}, options = {}) => (await send(path, { ...options, body })).json();

export const modelPath = (name, verb) => `/admin/models/${encodeURIComponent(name)}/${verb}`;

/** The "samples" or "events" recorded from `from` to `to` (epoch s), as it is `now` on the server. */
export async function history(only, from, to, now, { points, signal }) {
  const query = new URLSearchParams({
    since: Math.max(1, now - from).toFixed(1),
    until: Math.max(0, now - to).toFixed(1),
    points,
    only,
    language,
  });
  return (await get(`/admin/history?${query}`, { signal }))[only];
}

async function reason(response) {
  const text = await response.text().catch(() => "");
  try {
    const { error } = JSON.parse(text);
    const message = error?.message ?? error;
    if (typeof message === "string" && message) return { message, code: error.code ?? "" };
  } catch {
    // not JSON: a proxy's own page
  }
  return { message: t("error.status", { status: `${response.status} ${response.statusText}`.trim() }), code: "" };
}
