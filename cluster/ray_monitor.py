"""Whether Ray's own memory monitor watches a node, as far as its process can see it. Pure."""

from collections.abc import Mapping

VARIABLE = "RAY_memory_monitor_refresh_ms"


def warning(environment: Mapping[str, str], platform: str) -> str:
    """A sentence where the monitor is on, else ""; a node's process inherits what ``ray start`` was given.

    Ray has it on Linux only, on by default, off at 0.
    """
    if not platform.startswith("linux") or environment.get(VARIABLE, "").strip() == "0":
        return ""
    percent = 100 * _share(environment.get("RAY_memory_usage_threshold", ""))
    return (
        f"Ray's memory monitor is on: at {percent:.0f}% of the machine's memory it may kill the node's process, with"
        f" all its models; start Ray there with {VARIABLE}=0 ray start ..."
    )


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.95
