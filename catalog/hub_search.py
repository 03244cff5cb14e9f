"""Searching the Hugging Face hub for models in MLX's format: ``python -m plimsoll.catalog.hub_search WORDS LIMIT``.

The server asks by way of that child, which prints the hub's answer as JSON; what went wrong is the last line on stderr.
"""

import json
import os
import sys
import urllib.request
from typing import Any, NamedTuple
from urllib.parse import urlencode

from plimsoll.catalog import child_process
from plimsoll.config import ModelsConfig
from plimsoll.errors import Unavailable

_VALUE_BYTES = {"F64": 8, "I64": 8, "F32": 4, "U32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
# Beside its weights a model needs room for conversations and for what it computes with.
_MORE_THAN_WEIGHTS = 1.1
_ANSWER_S = 15.0


class HubUnreachable(Unavailable):
    """No network, or the hub does not answer."""

    code = "hub_unreachable"


class HubOffline(Unavailable):
    """The configuration or the environment says to stay offline."""

    code = "hub_offline"


class Row(NamedTuple):
    """A repo; ``size_bytes`` of its weights is None where the hub does not say, and then ``fits`` is None too."""

    name: str
    size_bytes: int | None
    fits: bool | None
    downloads: int
    gated: bool


def refuse_offline(config: ModelsConfig) -> None:
    """Raise ``HubOffline`` where nothing may be asked."""
    if config.offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        which = "models.offline" if config.offline else "$HF_HUB_OFFLINE"
        raise HubOffline(f"the hub can't be searched while {which} is on; plimsoll models lists what is here")


def ranked(repos: list[dict[str, Any]], budget: int) -> list[Row]:
    """What fits first, then what is not known, then the rest; the most downloaded first among them."""
    rows = [_row(repo, budget) for repo in repos]
    return sorted(rows, key=lambda row: ({True: 0, None: 1, False: 2}[row.fits], -row.downloads))


def search(words: str, limit: int) -> list[dict[str, Any]]:
    """What the hub tells of the repos whose names have these words. Raises ``HubUnreachable``."""
    # Not by the library's own list: it tries for a minute, with a warning each time, where there is no network.
    from huggingface_hub import constants  # noqa: PLC0415 - the front process starts without it
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # noqa: PLC0415 - as above

    query = {"search": words, "filter": "mlx", "sort": "downloads", "direction": "-1", "limit": limit}
    query |= {"expand[]": ["safetensors", "downloads", "gated"]}
    url = f"{constants.ENDPOINT}/api/models?{urlencode(query, doseq=True)}"
    try:
        asked = urllib.request.Request(url, headers=build_hf_headers())  # noqa: S310 - the hub's address is the user's own
        with urllib.request.urlopen(asked, timeout=_ANSWER_S) as answer:  # noqa: S310 - as above
            found: list[dict[str, Any]] = json.load(answer)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise HubUnreachable(
            f"the hub can't be reached ({reason}); check the network. plimsoll models lists what is here"
        ) from None
    return found


def search_in_child(words: str, limit: int) -> list[dict[str, Any]]:
    """As ``search``, in a process of its own; takes a second, and 20 at the most."""
    try:
        (line,) = child_process.lines("plimsoll.catalog.hub_search", words, str(limit))
    except OSError as error:
        raise HubUnreachable(str(error)) from None
    found: list[dict[str, Any]] = json.loads(line)
    return found


def _row(repo: dict[str, Any], budget: int) -> Row:
    parameters = (repo.get("safetensors") or {}).get("parameters") or {}
    weights = sum(_VALUE_BYTES.get(kind, 1) * count for kind, count in parameters.items()) or None
    fits = None if weights is None else weights * _MORE_THAN_WEIGHTS <= budget
    return Row(str(repo["id"]), weights, fits, repo.get("downloads") or 0, bool(repo.get("gated")))


def main(words: str, limit: str) -> int:
    """The command: 0, or 1 with one line on stderr."""
    try:
        found = search(words, int(limit))
    except HubUnreachable as error:
        sys.stderr.write(f"ERROR: {error.message}\n")
        return 1
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
