"""KV caches of conversations on disk, so that a model that was unloaded comes back with them warm.

One safetensors file per conversation: ``tokens``, and ``k.N`` and ``v.N`` of each layer. Files are written while the
worker is idle and read while a request waits, both on a thread of their own; MLX's arrays stay with the step thread.
"""

import contextlib
import hashlib
import json
import os
import shutil
import struct
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import KVCache
from safetensors import SafetensorError, safe_open

from plimsoll.engine.prompt_cache import common_prefix
from plimsoll.engine.protocol import EngineOptions

FOLDER = "conversations"
# Shorter ones are read again sooner than found.
LEAST_TOKENS = 256
# One conversation may not push out most of the others, and the disk keeps this much for its owner.
_LARGEST_SHARE = 0.5
_FREE_BYTES = 1 << 30
# So much of an earlier turn has to be in the later one that takes its place.
_COVERED_SHARE = 0.9
# A part that old belongs to a worker that was killed in mid-write.
_STALE_S = 600.0
_SUFFIX = ".safetensors"
# numpy has no bfloat16: its bits travel as U16.
_DTYPES = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "U16"}


@dataclass(frozen=True, slots=True)
class Stored:
    """One file and the tokens whose cache it holds."""

    path: Path
    tokens: list[int]
    size: int


class DiskCache:
    """The conversations of one model. All methods are the step thread's; none waits for the disk."""

    def __init__(self, root: Path, model: str, limit_bytes: int) -> None:
        """``model`` is a ``fingerprint``; all models under ``root`` share the limit, oldest first to go."""
        self._root = root
        self._folder = root / model
        self._limit = limit_bytes
        self._thread = ThreadPoolExecutor(1, "disk-cache")
        self._stored: tuple[Stored, ...] = ()  # replaced whole, by the thread
        self._writing: list[tuple[Future[None], Sequence[mx.array]]] = []
        self._thread.submit(_quietly, self._scan)

    def find(self, tokens: list[int], known: int, limit_bytes: int) -> Stored | None:
        """The file that knows most of ``tokens``, if that is well more than ``known`` and fits in ``limit_bytes``."""
        best, length = None, known + LEAST_TOKENS - 1
        for stored in self._stored:
            common = min(common_prefix(stored.tokens, tokens), len(tokens) - 1)
            if common > length and stored.size <= limit_bytes:
                best, length = stored, common
        return best

    def read(self, stored: Stored) -> "Future[list[Any] | None]":
        """Its tensors as numpy arrays for ``layers``; None for a file that is gone or broken, which is removed."""
        return self._thread.submit(self._read, stored)

    def wants(self, tokens: list[int], layers: list[Any]) -> bool:
        """Whether these layers are worth a file that is not there yet."""
        known = any(_covers(stored.tokens, tokens) for stored in self._stored)
        return len(tokens) >= LEAST_TOKENS and not known and _size(layers) <= self._limit * _LARGEST_SHARE

    def write(self, tokens: list[int], layers: list[Any]) -> None:
        """Begin to write them; they must be evaluated."""
        arrays = [array for layer in layers for array in (layer.keys, layer.values)]
        dtype = _DTYPES[arrays[0].dtype]
        plain = [array.view(mx.uint16) if dtype == "U16" else array for array in arrays]
        mx.eval(plain)
        views = [np.asarray(array) for array in plain]
        # Held here until they are written, so that the last reference is dropped on this thread.
        self._writing.append((self._thread.submit(_quietly, self._write, tokens, views, dtype), plain))

    @property
    def writing(self) -> bool:
        """Whether something is still being written; what is done is let go."""
        self._writing = [one for one in self._writing if not one[0].done()]
        return bool(self._writing)

    def close(self) -> None:
        """What is being written is given up."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    # ---- the thread

    def _scan(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part in self._root.glob("*/*.part"):
            if time.time() - part.stat().st_mtime > _STALE_S:
                part.unlink(missing_ok=True)
        self._stored = tuple(stored for path in self._folder.glob("*" + _SUFFIX) if (stored := _open(path)))
        self._make_room(0)

    def _write(self, tokens: list[int], views: list[Any], dtype: str) -> None:
        size = sum(view.nbytes for view in views)
        self._make_room(size)
        if shutil.disk_usage(self._folder).free < size + _FREE_BYTES:
            return
        named = {"tokens": np.asarray(tokens, np.int32)}
        named |= {f"{'kv'[index % 2]}.{index // 2}": view for index, view in enumerate(views)}
        name = hashlib.sha256(named["tokens"].tobytes()).hexdigest()[:32]
        path = self._folder / (name + _SUFFIX)
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                _write_tensors(file, named, dtype)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        covered = {one.path for one in self._stored if one.path != path and _covers(tokens, one.tokens)}
        for old in covered:
            old.unlink(missing_ok=True)
        kept = (one for one in self._stored if one.path not in covered | {path})
        self._stored = (*kept, Stored(path, tokens, path.stat().st_size))

    def _read(self, stored: Stored) -> list[Any] | None:
        try:
            with safe_open(stored.path, framework="numpy") as file:
                count = sum(name.startswith("k.") for name in file.keys())  # noqa: SIM118 - no mapping
                tensors = [file.get_tensor(f"{kind}.{layer}") for layer in range(count) for kind in "kv"]
            os.utime(stored.path)
        except (OSError, SafetensorError, ValueError) as error:
            self._drop(stored, error)
            return None
        return tensors

    def _drop(self, stored: Stored, error: Exception) -> None:
        sys.stderr.write(f"plimsoll worker: a stored conversation can't be read and is dropped: {error}\n")
        self._stored = tuple(one for one in self._stored if one is not stored)
        with contextlib.suppress(OSError):
            stored.path.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Delete the least recently used files of all models until ``size`` more bytes are within the limit."""
        files = sorted(_stats(self._root.glob("*/*" + _SUFFIX)), key=lambda one: one[1].st_mtime)
        surplus = sum(stat.st_size for _, stat in files) + size - self._limit
        for path, stat in files:
            if surplus <= 0:
                break
            path.unlink(missing_ok=True)
            surplus -= stat.st_size
            self._stored = tuple(one for one in self._stored if one.path != path)


def layers_of(tensors: list[Any]) -> list[KVCache]:
    """What ``DiskCache.read`` gave as layers of this thread; ``tensors`` is used up, so that few exist twice."""
    layers = []
    while tensors:
        layer = KVCache()
        layer.keys, layer.values = (_as_array(tensors.pop(0)) for _ in "kv")
        layer.offset = layer.keys.shape[2]
        layers.append(layer)
    return layers


def can_be_stored(layers: list[Any]) -> bool:
    """Whether these are plain caches; windows and recurrent states are not kept on disk."""
    return (
        bool(layers)
        and all(
            type(layer) is KVCache and layer.keys is not None and layer.offset == layer.keys.shape[2]
            for layer in layers
        )
        and layers[0].keys.dtype in _DTYPES
    )


def fingerprint(path: Path, options: EngineOptions) -> str:
    """Names what a KV cache depends on: the model's files, how they are loaded, and the version of mlx-lm."""
    files = sorted(_stats(path.glob("*.safetensors"))) + sorted(_stats(path.glob("*.json")))
    if options.adapter:
        files += sorted(_stats(Path(options.adapter).glob("*")))
    told = [[file.name, stat.st_size, stat.st_mtime_ns] for file, stat in files]
    text = json.dumps([str(path), told, options.dequantize, options.adapter, metadata.version("mlx-lm")])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _quietly(work: Any, *arguments: Any) -> None:
    """A cache that can't be kept is no failure: it is said and forgotten."""
    try:
        work(*arguments)
    except OSError as error:
        sys.stderr.write(f"plimsoll worker: conversations can't be kept on disk: {error}\n")


def _covers(tokens: list[int], earlier: list[int]) -> bool:
    """Whether little is lost with the earlier one: an answer that is read back may end in other tokens."""
    return common_prefix(tokens, earlier) >= _COVERED_SHARE * len(earlier)


def _open(path: Path) -> Stored | None:
    try:
        with safe_open(path, framework="numpy") as file:
            return Stored(path, file.get_tensor("tokens").tolist(), path.stat().st_size)
    except (OSError, SafetensorError):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return None


def _write_tensors(file: BinaryIO, named: dict[str, Any], dtype: str) -> None:
    """The safetensors format: the header's length, the header, and the tensors' bytes one after another."""
    header, end = {}, 0
    for name, array in named.items():
        begin, end = end, end + array.nbytes
        kind = "I32" if name == "tokens" else dtype
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for array in named.values():
        file.write(np.ascontiguousarray(array).data.cast("B"))


def _as_array(tensor: Any) -> mx.array:
    array = mx.array(tensor)
    return array.view(mx.bfloat16) if tensor.dtype == np.uint16 else array


def _size(layers: list[Any]) -> int:
    return sum(layer.nbytes for layer in layers)


def _stats(paths: Iterable[Path]) -> list[tuple[Path, os.stat_result]]:
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            found.append((path, path.stat()))
    return found
