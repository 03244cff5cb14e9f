// The conversations that this browser keeps, in its localStorage: a list of heads, and the messages of each apart.

const HEADS = "plimsoll.conversations";
const MESSAGES = "plimsoll.conversation.";
const MOST = 50;
// Browsers give a page 5 million characters.
const MOST_CHARS = 3_000_000;
const MOST_CHARS_OF_ONE = 1_000_000;

/** `{id, title, model, changed, chars}` of each, the one that was changed last first. */
export function list() {
  return parsed(HEADS, []);
}

/** `{id, title, model, messages}`, or null where it is not kept. */
export function open(id) {
  const head = list().find((one) => one.id === id);
  const messages = head && parsed(MESSAGES + id, null);
  return messages && { id, title: head.title, model: head.model, messages };
}

/** Keeps it as the newest; the oldest ones and the beginnings of very long ones go. False where there is no room for it. */
export function save({ id, title, model, messages }) {
  const text = shortened(messages);
  const heads = [{ id, title, model, changed: Date.now(), chars: text.length }, ...list().filter((one) => one.id !== id)];
  while (heads.length > MOST || (heads.length > 1 && heads.reduce((sum, one) => sum + one.chars, 0) > MOST_CHARS)) drop(heads);
  while (true) {
    try {
      localStorage.setItem(MESSAGES + id, text);
      localStorage.setItem(HEADS, JSON.stringify(heads));
      return true;
    } catch {
      if (heads.length === 1) return false;
      drop(heads);
    }
  }
}

export function rename(id, title) {
  localStorage.setItem(HEADS, JSON.stringify(list().map((one) => (one.id === id ? { ...one, title } : one))));
}

export function remove(id) {
  localStorage.setItem(HEADS, JSON.stringify(list().filter((one) => one.id !== id)));
  localStorage.removeItem(MESSAGES + id);
}

function drop(heads) {
  localStorage.removeItem(MESSAGES + heads.pop().id);
}

/** As JSON, without so many of the first turns that the rest is short enough. */
function shortened(messages) {
  let kept = messages;
  while (true) {
    const text = JSON.stringify(kept);
    const next = kept.findIndex((one, at) => at > 0 && one.role === "user");
    if (text.length <= MOST_CHARS_OF_ONE || next < 0) return text;
    kept = kept.slice(next);
  }
}

function parsed(key, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? otherwise;
  } catch {
    return otherwise;
  }
}
