// Puts the parts together: one feed, one range, five panels.

import { hasKey } from "./api.js";
import { Chat } from "./chat.js";
import { Downloads } from "./downloads.js";
import { find, say } from "./dom.js";
import { EventLog } from "./events.js";
import { Feed } from "./feed.js";
import { duration } from "./format.js";
import { HubPanel } from "./hub.js";
import { askForKey, watchAccess } from "./key.js";
import { fill, switchLanguage, t, worded } from "./language.js";
import { MemoryPanel } from "./memory.js";
import { ModelsPanel } from "./models.js";
import { Range } from "./range.js";
import { RequestsPanel } from "./requests.js";

const THEMES = ["auto", "light", "dark"];

fill();

const feed = new Feed();
const range = new Range(() => feed.now());
const memory = new MemoryPanel(find("#memory"), feed, range);
const downloads = new Downloads(find("#pulls"), feed);
const models = new ModelsPanel(find("#models"), feed, downloads, (name) => memory.hue(name));
new HubPanel(find("#hub"), models, downloads);
const log = new EventLog(find("#events"), feed, range);
new RequestsPanel(find("#requests"), models);
new Chat(find("#chat"), models);

log.addEventListener("change", ({ detail }) => memory.mark(detail));

// ---- the head of the page

const state = find("#state");
const connection = find("#connection");

feed.addEventListener("hello", ({ detail }) => {
  say(find("#version"), `Plimsoll ${detail.version}`);
  find("#version").title = t("head.process", { pid: detail.pid, time: duration(detail.now - detail.started_at) });
});
feed.addEventListener("sample", ({ detail }) => {
  say(state, worded("status", detail.status));
  state.dataset.level = detail.level === "normal" && detail.status !== "healthy" ? "warning" : detail.level;
  document.title = detail.level === "normal" ? "Plimsoll" : `${worded("level", detail.level)} · Plimsoll`;
});
feed.addEventListener("connection", ({ detail }) => {
  document.documentElement.dataset.connection = detail.state;
  if (detail.state === "live") {
    say(connection, "");
    return;
  }
  const gone = detail.state === "gone";
  say(state, t(gone ? "head.gone" : "head.no_access"));
  state.dataset.level = "gone";
  document.title = gone ? `${t("head.gone")} · Plimsoll` : "Plimsoll";
  say(connection, gone ? t("head.reconnecting") : detail.reason);
});

// ---- key, language, theme

const reconnect = () => feed.start();
// The thresholds come with the greeting only.
feed.addEventListener("journal", ({ detail }) => detail.kind === "config_reloaded" && reconnect());
watchAccess(reconnect);
find("#key").addEventListener("click", () => askForKey(reconnect, t(hasKey() ? "key.kept" : "key.for_some")));

find("#language").addEventListener("click", switchLanguage);

const theme = find("#theme");
const showTheme = () => {
  const chosen = document.documentElement.dataset.theme;
  const word = t(`theme.${chosen}`);
  say(find("span", theme), word);
  theme.setAttribute("aria-label", t("theme.label", { chosen: word }));
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
