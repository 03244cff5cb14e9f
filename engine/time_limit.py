"""A bound on the time that Python code of a stranger, such as a chat template, may take on the calling thread."""

import contextlib
import ctypes
import threading
from collections.abc import Iterator


class TookTooLong(Exception):
    """The time was over."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise ``TookTooLong`` inside the block after ``seconds``.

    It comes between two steps of Python: a single call into C, such as one that makes a huge string, ends first.
    """
    thread = ctypes.c_ulong(threading.get_ident())
    lock = threading.Lock()
    inside = True

    def interrupt() -> None:
        with lock:
            if inside:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(TookTooLong))

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with lock:
            inside = False
            # One that was sent and has not arrived must not hit what comes after the block.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, None)
