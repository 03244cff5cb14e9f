"""Models, plans and clean-ups in words."""

from typing import Any

from plimsoll.cli.output import duration, table
from plimsoll.journal.lines import size

_VERDICTS = {
    "load": "{model} fits: it would be loaded at once",
    "evict": "{model} fits once {evict} is unloaded, which a load does by itself",
    "wait": "{model} fits once a model that is being unloaded is gone; a load waits for that",
    "refuse": "{model} does not fit now: {blockers}",
    "never": "{model} can never be loaded on this machine",
}


def ps_table(running: list[dict[str, Any]]) -> str:
    """The models of ``GET /admin/models`` that have a life."""
    rows = []
    for one in running:
        rows.append(
            [
                one["name"],
                state(one),
                footprint(one),
                str(one["active"]),
                str(one["queued"]),
                speed(one),
                str(one["pid"] or "-"),
                "-" if one["idle_s"] is None else f"{duration(one['idle_s'])} ago",
                unloads(one),
            ]
        )
        rows += [
            [f"  on {host['host']}", f"{100 * host['used'] / host['total']:.0f}% of", size(host["total"]), *[""] * 6]
            for host in one.get("hosts", ())
        ]
    head = ["NAME", "STATE", "MEMORY", "BUSY", "QUEUE", "TOK/S", "PID", "USED", "UNLOADS"]
    return table(head, rows, right="MEMORY,BUSY,QUEUE,TOK/S,PID,USED")


def state(one: dict[str, Any]) -> str:
    """``ready``, or how far the load is: ``read 45%``."""
    if one["state"] != "loading" or not one["stage"]:
        return str(one["state"])
    share = f" {100 * one['done_bytes'] // one['total_bytes']}%" if one["total_bytes"] else ""
    return f"{one['stage']}{share}"


def footprint(one: dict[str, Any]) -> str:
    """What its worker holds."""
    return size(one["footprint_bytes"]) if one.get("footprint_bytes") else "-"


def speed(one: dict[str, Any]) -> str:
    """Tokens per second just now."""
    return f"{one['tokens_per_s']:.1f}" if one.get("tokens_per_s") else "-"


def unloads(one: dict[str, Any]) -> str:
    """When it will be unloaded for being idle."""
    if one["pinned"]:
        return "never"
    return "-" if one["unload_in_s"] is None else f"in {duration(one['unload_in_s'])}"


def loaded_line(one: dict[str, Any]) -> str:
    """What became of a load."""
    info = one["info"]
    parts = [f"loaded in {info['load_s']:.1f} s on the {info['device']}" if info else "", footprint(one).strip("-")]
    return f"{one['name']} is {one['state']}: {', '.join(part for part in parts if part)}"


def plan_lines(plan: dict[str, Any]) -> str:
    """What a load would do, and the figures that say why."""
    names = {"evict": ", ".join(plan["evict"]), "blockers": "; ".join(plan["blockers"]) or "other programs hold memory"}
    lines = [_VERDICTS[plan["verdict"]].format(model=plan["model"], **names)]
    lines.append(f"  needs {plan['required_gb']:.1f} GB; {plan['available_gb']:.1f} GB are free to be granted")
    if plan["evictable_gb"]:
        lines[-1] += f", {plan['evictable_gb']:.1f} GB more with idle models unloaded"
    if plan["verdict"] in ("load", "evict", "wait"):
        lines.append(f"  memory would then be up to {plan['percent_after']:.0f}% full")
        lines.append(f"  longest conversation that fits: {plan['longest_context']:,} tokens")
    return "\n".join(lines)


def cleanup_line(report: dict[str, Any]) -> str:
    """What a clean-up did, in one line."""
    names = ", ".join(report["unloaded"]) or "nothing"
    freed, expected = size(max(0, report["freed_bytes"])), size(report["expected_bytes"])
    before, after = report["percent_before"], report["percent_after"]
    return f"unloaded {names}: freed {freed} of {expected}, memory {before:.1f}% -> {after:.1f}%"
