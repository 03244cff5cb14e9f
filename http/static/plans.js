// What a load or a clean-up would do, in words. Decisions are the server's; nothing here touches the page.

import { gigabytes, listed, percent } from "./format.js";

/** The question to ask before a load by its plan, or null where it harms nobody. */
export function loadQuestion(plan) {
  const { model, verdict, evict, blockers } = plan;
  const needs = gigabytes(plan.required_gb);
  const free = gigabytes(plan.available_gb);
  if (verdict === "load") return null;
  if (verdict === "evict") {
    const victims = listed(evict);
    return {
      title: `Load ${model}?`,
      body: [
        `Loading ${model} (needs ${needs}) will unload ${victims}.`,
        `${free} may still be granted; unloading makes room. Memory would be ${percent(plan.percent_after)} full afterwards.`,
      ],
      actions: [{ label: `Unload ${victims} and load`, value: "load", kind: "primary" }],
    };
  }
  if (verdict === "wait") {
    return {
      title: `Load ${model}?`,
      body: [`${model} needs ${needs} and ${free} may be granted now. It loads as soon as a model that is leaving is gone.`],
      actions: [{ label: "Load when there is room", value: "load", kind: "primary" }],
    };
  }
  if (verdict === "line") {
    return {
      title: `Load ${model}?`,
      body: [`${model} needs ${needs} and ${free} may be granted now. It loads as soon as it is free: ${listed(blockers)}.`],
      actions: [{ label: "Load when there is room", value: "load", kind: "primary" }],
    };
  }
  if (verdict === "never") {
    return {
      title: `${model} does not fit`,
      body: [
        `${model} needs ${needs}. That is more than this machine may use for models, whatever is unloaded.`,
        "A smaller or more strongly quantised model would fit, or one with a shorter context.",
      ],
      refusal: "Close",
    };
  }
  return {
    title: `${model} does not fit now`,
    body: [
      `${model} needs ${needs}, but only ${free} may be granted now and no idle model can make room.`,
      ...(blockers.length ? [`In the way: ${listed(blockers)}.`] : ["Other programs hold the memory."]),
    ],
    refusal: "Close",
  };
}

/** The question where the need is not known, since the files have to be fetched first. */
export function fetchQuestion(model, sentence) {
  return {
    title: `Load ${model}?`,
    body: [`${sentence}.`.replace("..", "."), "Loading fetches them first; what has to make room is decided then."],
    actions: [{ label: "Fetch and load", value: "load", kind: "primary" }],
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
  const freed = gigabytes(report.freed_bytes / 2 ** 30);
  if (!report.unloaded.length) return "The clean-up found nothing to unload.";
  return `Unloaded ${listed(report.unloaded)}: ${freed} are back, memory went from ${percent(report.percent_before)} to ${percent(report.percent_after)}.`;
}
