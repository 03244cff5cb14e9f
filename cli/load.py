"""Loading a model on the server, with a bar that shows how far it is."""

import contextlib
import queue
import threading
from typing import Any

from plimsoll.cli.bars import progress_bar
from plimsoll.cli.client import Client
from plimsoll.errors import PlimsollError

_LOOK_EVERY_S = 0.25


def load_with_progress(client: Client, name: str, path: str) -> dict[str, Any]:
    """The model's status once it is loaded. The load goes on when this is interrupted. Raises as ``Client`` does."""
    ending: queue.Queue[dict[str, Any] | PlimsollError] = queue.Queue()

    def ask() -> None:
        try:
            # A load takes what it takes; while it runs, the looks below notice a server that is gone.
            ending.put(client.post(path, {}, timeout_s=None))
        except PlimsollError as error:
            ending.put(error)

    threading.Thread(target=ask, daemon=True).start()
    with progress_bar(name) as progress:
        while True:
            with contextlib.suppress(queue.Empty):
                result = ending.get(timeout=_LOOK_EVERY_S)
                break
            _look(client, name, progress)
    if isinstance(result, PlimsollError):
        raise result
    return result


def _look(client: Client, name: str, progress: Any) -> None:
    # It only feeds the bar: what goes wrong here, the load itself tells better.
    with contextlib.suppress(PlimsollError, LookupError):
        for one in client.get("/admin/models", timeout_s=5.0)["models"]:
            if one["name"] == name:
                progress(one["stage"] or "waiting", one["done_bytes"], one["total_bytes"])
