// Puts the parts together: one feed, one range, five panels.

import { hasKey } from "./api.js";
import { Chat } from "./chat.js";
import { find, say } from "./dom.js";
import { EventLog } from "./events.js";
import { Feed } from "./feed.js";
import { duration } from "./format.js";
import { askForKey, watchAccess } from "./key.js";
import { MemoryPanel } from "./memory.js";
import { ModelsPanel } from "./models.js";
import { Range } from "./range.js";
import { RequestsPanel } from "./requests.js";

const THEMES = ["auto", "light", "dark"];

const feed = new Feed();
const range = new Range(() => feed.now());
const memory = new MemoryPanel(find("#memory"), feed, range);
const models = new ModelsPanel(find("#models"), feed, (name) => memory.hue(name));
const log = new EventLog(find("#events"), feed, range);
new RequestsPanel(find("#requests"), models);
new Chat(find("#chat"), models);

log.addEventListener("change", ({ detail }) => memory.mark(detail));

// ---- the head of the page

const state = find("#state");
const connection = find("#connection");

feed.addEventListener("hello", ({ detail }) => {
  say(find("#version"), `Plimsoll ${detail.version}`);
  find("#version").title = `process ${detail.pid}, running for ${duration(detail.now - detail.started_at)}`;
});
feed.addEventListener("sample", ({ detail }) => {
  say(state, detail.status);
  state.dataset.level = detail.level === "normal" && detail.status !== "healthy" ? "warning" : detail.level;
  document.title = detail.level === "normal" ? "Plimsoll" : `${detail.level} · Plimsoll`;
});
feed.addEventListener("connection", ({ detail }) => {
  document.documentElement.dataset.connection = detail.state;
  if (detail.state === "live") {
    say(connection, "");
    return;
  }
  const gone = detail.state === "gone";
  say(state, gone ? "gone" : "no access");
  state.dataset.level = "gone";
  document.title = gone ? "gone · Plimsoll" : "Plimsoll";
  say(connection, gone ? "The server is gone, reconnecting …" : detail.reason);
});

// ---- key, theme

const reconnect = () => feed.start();
// The thresholds come with the greeting only.
feed.addEventListener("journal", ({ detail }) => detail.kind === "config_reloaded" && reconnect());
watchAccess(reconnect);
find("#key").addEventListener("click", () => askForKey(reconnect, hasKey() ? "A key is kept in this browser." : "For servers that ask for one."));

const theme = find("#theme");
const showTheme = () => {
  const chosen = document.documentElement.dataset.theme;
  say(find("span", theme), chosen);
  theme.setAttribute("aria-label", `Colours: ${chosen}`);
  memory.restyle();
};
theme.addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
  document.documentElement.dataset.theme = next;
  if (next === "auto") localStorage.removeItem("plimsoll.theme");
  else localStorage.setItem("plimsoll.theme", next);
  showTheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
showTheme();

feed.start();
