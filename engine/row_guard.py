"""Errors of one request's own code end that request alone; errors that mean a broken device end the whole batch.

Each request has code of its own in many places: its grammar, sampler, stop strings, tool-call reader, and the KV cache
that it begins with. A forward pass belongs to the whole batch and is not guarded.
"""

import sys
import traceback
from types import TracebackType

from plimsoll.engine.protocol import RequestError
from plimsoll.errors import BadRequest

# What MLX and its back ends write when memory or the device failed. The stream may be poisoned: every further step
# could give wrong tokens to everybody, so the worker has to be replaced.
_OUT_OF_MEMORY = (
    "[malloc] Unable to allocate",
    "[metal::malloc]",
    "Insufficient Memory",
    "kIOGPUCommandBufferCallbackErrorOutOfMemory",
    "out of memory",  # CUDA's, of the runtime and of the driver: "cudaMallocAsync(...) failed: out of memory"
    "CUDA_ERROR_OUT_OF_MEMORY",
    "cudaErrorMemoryAllocation",
    "ALLOC_FAILED",  # CUBLAS_STATUS_, CUDNN_STATUS_
)
_DEVICE_FAILED = (
    "[METAL]",
    "[metal",
    "kIOGPUCommandBuffer",
    "Command buffer execution",
    "cudaError",
    "CUDA_ERROR",
    "CUBLAS_STATUS",
    "CUDNN_STATUS",
    "an illegal memory access",
    "There is no Stream",
)


class NoFiniteScore(ArithmeticError):
    """The logits of a row hold NaN or infinity, or nothing but minus infinity."""


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or any(mark in str(error) for mark in _OUT_OF_MEMORY)


def poisons(error: BaseException) -> bool:
    """Whether memory or the device failed with ``error``, so that no row may be stepped again."""
    if isinstance(error, RuntimeError):  # MLX's; the text of others may be a client's
        return any(mark in str(error) for mark in (*_OUT_OF_MEMORY, *_DEVICE_FAILED))
    return isinstance(error, MemoryError | KeyboardInterrupt | SystemExit | GeneratorExit)


class RowGuard:
    """``with guard(key):`` records under ``key`` what the block raises; errors that poison the batch are raised on.

    Keys are the generator's row numbers (uids), or request ids where there is no row yet. The first error of a key
    counts. Panics of Rust libraries, which are no ``Exception``, are noted too.
    """

    def __init__(self) -> None:
        self._noted: dict[int | str, BaseException] = {}

    def __call__(self, key: int | str) -> "_Block":
        return _Block(self, key)

    def aside(self, what: str) -> "_Block":
        """For work that no answer depends on, such as storing a KV cache: an error is logged and then ignored."""
        return _Block(self, None, what)

    def __contains__(self, key: int | str) -> bool:
        return key in self._noted

    def note(self, key: int | str, error: BaseException) -> None:
        self._noted.setdefault(key, error)

    def take(self, key: int | str) -> BaseException | None:
        """What was noted under ``key``, once."""
        return self._noted.pop(key, None)

    def keep_only(self, keys: set[int]) -> None:
        """Forget what was noted under other keys."""
        self._noted = {key: error for key, error in self._noted.items() if key in keys}


class _Block:
    __slots__ = ("_guard", "_key", "_what")

    def __init__(self, guard: RowGuard, key: int | str | None, what: str = "") -> None:
        self._guard = guard
        self._key = key
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _at: TracebackType | None
    ) -> bool:
        if error is None or poisons(error):
            return False
        if self._key is not None:
            self._guard.note(self._key, error)
        else:
            _log(self._what, error)
        return True


def row_failed(request_id: str, error: BaseException, tokens: int) -> RequestError:
    """The ending of a request after ``error``; ``tokens`` of its answer were there. The log gets the traceback."""
    if isinstance(error, NoFiniteScore):
        sentence = (
            f"The model computed no finite score for token {tokens + 1} of the answer: its logits are NaN or infinite. "
            "Its weights are damaged, or this prompt overflows the precision they are kept in. Send another prompt, or "
            "load the model in another precision (bfloat16 or float32)."
        )
    else:
        _log(f"request {request_id} failed alone", error)
        sentence = (
            f"This answer failed after {tokens} tokens: {describe(error)}. Other answers of the model are not touched. "
            "Send the request again with fewer of its options; the worker's log has the details."
        )
    return RequestError(request_id, "internal_error", sentence)


def _log(what: str, error: BaseException) -> None:
    sys.stderr.write(f"plimsoll worker: {what}\n")
    traceback.print_exception(error, file=sys.stderr)


def describe(error: BaseException) -> str:
    """One line for an exception of any library, of characters that UTF-8 has."""
    words = " ".join(str(error).split())[:500]
    text, name = words.encode("utf-8", "replace").decode(), type(error).__name__
    if isinstance(error, BadRequest):
        return text
    return f"{name}: {text}" if text else name  # Python's own MemoryError says nothing else
