// What a load or a clean-up would do, in words. Decisions are the server's; nothing here touches the page.

import { gigabytes, listed, percent } from "./format.js";
import { t } from "./language.js";

/** What a load by this plan would do, in a few words for the card; "" where nothing is to be said. */
export function planWords(plan) {
  const needs = gigabytes(plan.required_gb);
  const key = { load: "fits", evict: "evicts", wait: "waits", line: "waits", never: "never" }[plan.verdict] ?? "refused";
  return t(`plan.${key}`, { needs, names: listed(plan.evict) });
}

/** The question to ask before a load by its plan, or null where it harms nobody. */
export function loadQuestion(plan) {
  const { model: name, verdict, evict, blockers } = plan;
  const values = { name, needs: gigabytes(plan.required_gb), free: gigabytes(plan.available_gb), percent: percent(plan.percent_after) };
  if (verdict === "load") return null;
  if (verdict === "evict") {
    const names = listed(evict);
    return {
      title: t("plan.load_question", values),
      body: [t("plan.evict_body", { ...values, names }), t("plan.evict_after", values)],
      actions: [{ label: t("plan.evict_do", { names }), value: "load", kind: "primary" }],
    };
  }
  if (verdict === "wait" || verdict === "line") {
    return {
      title: t("plan.load_question", values),
      body: [t(`plan.${verdict}_body`, { ...values, names: listed(blockers) })],
      actions: [{ label: t("plan.wait_do"), value: "load", kind: "primary" }],
    };
  }
  if (verdict === "never") {
    return { title: t("plan.never_title", values), body: [t("plan.never_body", values), t("plan.never_hint")], refusal: t("dialog.close") };
  }
  return {
    title: t("plan.refuse_title", values),
    body: [t("plan.refuse_body", values), blockers.length ? t("plan.blockers", { names: listed(blockers) }) : t("plan.other_programs")],
    refusal: t("dialog.close"),
  };
}

/** The question where the need is not known, since the files have to be fetched first. */
export function fetchQuestion(name, sentence) {
  return {
    title: t("plan.load_question", { name }),
    body: [`${sentence}.`.replace("..", "."), t("plan.fetch_hint")],
    actions: [
      { label: t("plan.fetch_do"), value: "load", kind: "primary" },
      { label: t("hub.download"), value: "fetch" },
    ],
  };
}

/** Which models a clean-up would unload as things are; the server decides again when it runs. */
export function cleanupVictims(models, aggressive) {
  const present = models.filter((one) => ["loading", "ready", "busy"].includes(one.state));
  if (aggressive) return present.map((one) => one.name);
  const used = (one) => (one.state === "ready" ? one.idle_s ?? Infinity : 0);
  const loaded = present.filter((one) => one.state !== "loading").sort((a, b) => used(b) - used(a));
  return loaded.slice(0, -1).filter((one) => one.state === "ready" && !one.pinned).map((one) => one.name);
}

export function cleanupResult(report) {
  if (!report.unloaded.length) return t("cleanup.nothing");
  const freed = gigabytes(report.freed_bytes / 2 ** 30);
  return t("cleanup.done", { names: listed(report.unloaded), freed, before: percent(report.percent_before), after: percent(report.percent_after) });
}
