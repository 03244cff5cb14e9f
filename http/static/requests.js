// The requests panel: the newest requests that have ended, and where the time of one of them went.

import { get } from "./api.js";
import { arrange, el, find, say } from "./dom.js";
import { moment, rate, seconds } from "./format.js";
import { t, worded } from "./language.js";

const SHOWN = 200;

export class RequestsPanel {
  #root;
  #chosen = "";
  #isOpen = false;

  /** Asks the server once the panel is opened, when a filter changes and on "Read again"; never by itself. */
  constructor(root, models) {
    this.#root = root;
    find("details", root).addEventListener("toggle", ({ target }) => {
      this.#isOpen = target.open;
      if (target.open) this.#load();
    });
    for (const id of ["request-model", "request-ending", "request-key"]) find(`#${id}`, root).addEventListener("change", () => this.#load());
    find("#request-again", root).addEventListener("click", () => this.#load());
    models.addEventListener("change", () => this.#offer(models.models.map((one) => one.name)));
  }

  #offer(names) {
    const select = find("#request-model", this.#root);
    const chosen = select.value;
    arrangeOptions(select, ["", ...names]);
    select.value = names.includes(chosen) ? chosen : "";
  }

  async #load() {
    if (!this.#isOpen) return;
    const query = new URLSearchParams({ limit: SHOWN });
    const filters = { model: "request-model", outcome: "request-ending", key: "request-key" };
    for (const [name, id] of Object.entries(filters)) {
      const value = find(`#${id}`, this.#root).value.trim();
      if (value) query.set(name, value);
    }
    try {
      this.#show((await get(`/admin/requests?${query}`)).requests);
      say(find("#request-note", this.#root), "");
    } catch (error) {
      say(find("#request-note", this.#root), t("requests.unread", { why: error.message }));
    }
  }

  #show(rows) {
    say(find(".count", this.#root), rows.length === SHOWN ? t("requests.newest", { n: SHOWN }) : `${rows.length}`);
    find("#no-requests", this.#root).hidden = rows.length > 0;
    arrange(find("tbody", this.#root), rows.map((row) => this.#row(row)));
  }

  #row(row) {
    const open = el("button", { class: "plain", text: moment(row.ended_at), "aria-label": t("requests.where", { at: moment(row.ended_at) }), onclick: () => this.#open(row.id, made) });
    const figures = [row.prompt_tokens, row.reused_tokens, row.completion_tokens, seconds(row.first_token_s), seconds(row.seconds)];
    const made = el(
      "tr",
      {},
      el("td", {}, open),
      el("td", { text: row.key || "–" }),
      el("td", { text: row.model }),
      ...figures.map((figure) => el("td", { class: "figure", text: String(figure) })),
      el("td", { text: worded("ending", row.outcome), title: row.why, "data-outcome": row.outcome }),
    );
    return made;
  }

  async #open(id, row) {
    const old = find(".waterfall", this.#root);
    old?.remove();
    if (this.#chosen === id && old) return;
    this.#chosen = id;
    try {
      row.after(waterfall(await get(`/admin/requests/${encodeURIComponent(id)}`)));
    } catch (error) {
      say(find("#request-note", this.#root), error.message);
    }
  }
}

function arrangeOptions(select, names) {
  if ([...select.options].map((one) => one.value).join("\n") === names.join("\n")) return;
  select.replaceChildren(...names.map((name) => el("option", { value: name, text: name || t("events.all") })));
}

/** A row with one bar for each stretch of the request's time. */
function waterfall(told) {
  const whole = Math.max(told.seconds, 1e-9);
  const bars = told.spans.map(([stage, start, length]) => {
    const bar = el("i", { "data-stage": stage });
    bar.style.marginLeft = `${Math.min(99, (100 * start) / whole)}%`;
    bar.style.width = `${Math.max(0.5, Math.min(100, (100 * length) / whole))}%`;
    return el("li", {}, el("span", { text: worded("stage", stage) }), el("span", { class: "figure", text: seconds(length) }), el("span", { class: "track" }, bar));
  });
  const speed = told.stages_s.decode && told.completion_tokens > 1 ? `, ${rate((told.completion_tokens - 1) / told.stages_s.decode)}` : "";
  const reused = told.reused_from ? `, ${t("requests.reused_from", { n: told.reused_tokens, from: told.reused_from })}` : "";
  const texts = told.texts ? [el("pre", { text: `${told.texts.prompt}\n\n${told.texts.answer}` })] : [];
  return el(
    "tr",
    { class: "waterfall" },
    el("td", { colspan: "9" }, el("p", { class: "hint", text: `${told.id} · ${told.api}${speed}${reused}${told.why ? ` · ${told.why}` : ""}` }), el("ol", { "aria-label": t("requests.stages") }, ...bars), ...texts),
  );
}
