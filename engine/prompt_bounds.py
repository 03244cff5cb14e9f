"""Bounds on a prompt: its length, found out without tokenising all of it, and the time that a chat template may take.

A tokenizer takes 1 to 5 us and up to 190 bytes for each character of an unkind text: 16 MB were read for 72 s, and took
3 GB. What is read here grows with the model's context instead.
"""

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator

_SLICE = 16 * 1024
# A slice's tokens beyond those that its text would have had as a part of the whole: its ends cut words in two.
_CUT_TOKENS = 64


def beginning(count: Callable[[str], int], text: str, tokens: int) -> str:
    """The whole text, or as much of it as surely has more than ``tokens`` tokens; ``count`` counts those of a text."""
    if len(text) <= _SLICE + 4 * tokens:
        return text
    found = 0
    for end in range(_SLICE, len(text), _SLICE):
        found += count(text[end - _SLICE : end]) - _CUT_TOKENS
        if found > tokens:
            return text[:end]
    return text


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
