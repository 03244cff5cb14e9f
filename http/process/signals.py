"""What the process does on SIGTERM, SIGINT and SIGHUP."""

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from plimsoll.errors import ConfigError, PlimsollError
from plimsoll.http.front import App

# What the kernel may take to part a process from its terminal.
_GOING_S = 0.2
_log = logging.getLogger("plimsoll.http")


def on_signals(app: App, stop: Callable[[], None], on_exit: Callable[[], None]) -> None:
    """The first SIGTERM or SIGINT calls ``stop``, the second ends at once; workers end by themselves with us.

    SIGHUP reads the configuration again, unless it says that the terminal is gone. ``on_exit`` is called before an
    end at once. Does nothing outside the main thread, which alone may handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    loop, front = asyncio.get_running_loop(), app.ctx.front
    reloads: set[asyncio.Task[None]] = set()

    def stop_on(number: int) -> None:
        if front.stopping:
            logging.shutdown()
            on_exit()
            os._exit(128 + number)
        front.stopping = True
        stop()

    # nohup has it ignored from the start.
    ends_with_terminal = _has_terminal() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN

    def hung_up() -> None:
        # The signal comes before the terminal is quite gone, and then it looks like a call to reload.
        loop.call_later(_GOING_S if ends_with_terminal else 0.0, judge)

    def judge() -> None:
        if front.stopping:
            return  # a terminal that goes may say so twice
        if ends_with_terminal and not _has_terminal():
            stop_on(signal.SIGHUP)
        else:
            task = loop.create_task(_reload(app))
            reloads.add(task)
            task.add_done_callback(reloads.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_on, number)
    loop.add_signal_handler(signal.SIGHUP, hung_up)


async def _reload(app: App) -> None:
    try:
        await app.ctx.reloader.reload()
    except ConfigError:
        pass  # said in the journal
    except PlimsollError as error:
        _log.error("the configuration was not read again: %s", error.message)
    except Exception:  # noqa: BLE001 - nobody awaits this task
        _log.exception("the configuration was not read again")


def _has_terminal() -> bool:
    """Whether this process belongs to a terminal that is still there."""
    with contextlib.suppress(OSError), Path("/dev/tty").open("rb", buffering=0):
        return True
    return False
