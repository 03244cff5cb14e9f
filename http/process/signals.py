"""What SIGTERM, SIGINT and SIGHUP do."""

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from plimsoll.errors import ConfigError, PlimsollError
from plimsoll.http.app_state import App

# How long the kernel may take to detach a process from a terminal that was closed.
_DETACH_S = 0.2
_log = logging.getLogger("plimsoll.http")


def on_signals(app: App, stop: Callable[[], None], on_exit: Callable[[], None]) -> None:
    """The first SIGTERM or SIGINT calls ``stop``, the second ends the process at once; its workers end with it.

    SIGHUP reads the configuration again, unless it came because the terminal was closed: then it stops the server.
    ``on_exit`` is called before an end at once. Outside of the main thread, which alone may handle signals, this does
    nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    loop, state = asyncio.get_running_loop(), app.ctx.state
    reloads: set[asyncio.Task[None]] = set()

    def stop_on(number: int) -> None:
        if state.stopping:
            logging.shutdown()
            on_exit()
            os._exit(128 + number)
        state.stopping = True
        stop()

    # Under nohup SIGHUP is ignored from the start.
    ends_with_terminal = _has_terminal() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN

    def on_hangup() -> None:
        # The signal comes a moment before the terminal is gone; looked at now it would count as a call to reload.
        loop.call_later(_DETACH_S if ends_with_terminal else 0.0, stop_or_reload)

    def stop_or_reload() -> None:
        if state.stopping:
            return  # a terminal that closes may send it twice
        if ends_with_terminal and not _has_terminal():
            stop_on(signal.SIGHUP)
        else:
            task = loop.create_task(_reload(app))
            reloads.add(task)
            task.add_done_callback(reloads.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_on, number)
    loop.add_signal_handler(signal.SIGHUP, on_hangup)


async def _reload(app: App) -> None:
    try:
        await app.ctx.reloader.reload()
    except ConfigError:
        pass  # the journal has logged it
    except PlimsollError as error:
        _log.error("the configuration was not read again: %s", error.message)
    except Exception:  # noqa: BLE001 - nobody awaits this task
        _log.exception("the configuration was not read again")


def _has_terminal() -> bool:
    """Whether this process belongs to a terminal that is still there."""
    with contextlib.suppress(OSError), Path("/dev/tty").open("rb", buffering=0):
        return True
    return False
