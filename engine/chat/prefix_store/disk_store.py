"""The prefix store's part on disk, so that a model that was unloaded comes back with its conversations warm.

One file per block and per snapshot, in a folder per fingerprint. Files are written while the worker is idle or about to
end, those of an answer that had to pause at once, and read while a request waits, all on a thread that touches no MLX
array. That thread does one thing after the other, so a piece counts as on disk from the moment its file is ordered.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import accumulate
from pathlib import Path
from typing import Any

from plimsoll.engine.chat.prefix_store.files import BLOCK, STATE, Head, Piece
from plimsoll.engine.chat.prefix_store.folder import Folder, Order, delete
from plimsoll.engine.chat.prefix_store.prefix_store import Beginning, PrefixStore
from plimsoll.engine.chat.prefix_store.spec import Spec, pack, to_mlx, to_numpy, unpack
from plimsoll.engine.chat.prefix_store.tree import Block, Snapshot, first_of

FOLDER = "conversations"
# A conversation shorter than this is read again sooner than found.
LEAST_TOKENS = 64
# What one idle moment hands to the thread.
_PORTION_BYTES = 256 << 20
# The same while answers run, and what is read at once: meanwhile it takes memory that others may want.
_BUSY_PORTION_BYTES = 32 << 20
_READ_SHARE = 32  # of a large store's budget as much more is read at once
# How long a request waits for the folder to be looked through, and one look at the disk keeps commands waiting.
_LOOK_S = 2.0
_MOMENT_S = 0.02

_Piece = Block | Snapshot


class DiskStore:
    """One model's files. All methods are the step thread's; only ``moment`` and ``flush`` wait for the disk."""

    def __init__(
        self,
        root: Path,
        fingerprint: Callable[[threading.Event], str],
        limit_bytes: int,
        spec: Spec,
        *,
        quick: bool = True,
    ) -> None:
        """``fingerprint`` names the model's folder; all models under ``root`` share the limit.

        It is ``quick`` where the model's files were hashed before; no request waits for it otherwise.
        """
        self._quick = quick
        self._folder = Folder(root, fingerprint, limit_bytes)
        self._limit = limit_bytes
        self._spec = spec
        self._thread = ThreadPoolExecutor(1, "prefix-files")
        self._pieces: dict[Path, _Piece] = {}
        self._scan: Future[list[tuple[Head, Path, int]]] | None = None
        self._asked_s: float | None = None
        self._without_room: tuple[_Piece, int] | None = None
        self._refused: set[int] = set()  # numbers of pieces that the disk had no room for, until they are used again
        self._reading: tuple[Beginning, list[_Piece], Future[list[Piece | None]]] | None = None
        self._writing: list[tuple[list[Order], Future[tuple[list[Path], list[Path]]]]] = []
        self._open = self._thread.submit(self._folder.open, quick=quick)
        self._scan = self._thread.submit(self._folder.look_through)

    # ---- reading

    def look(self, store: PrefixStore) -> bool:
        """Whether what the folder holds is known; a request waits for that a while."""
        if self._scan is None:
            return True
        if not self._scan.done():
            if not self._quick:
                return True
            now = time.monotonic()
            self._asked_s = self._asked_s or now
            return now - self._asked_s > _LOOK_S
        scan, self._scan = self._scan, None
        if scan.exception() is None:
            self._take_over(store, scan.result())
        return True

    @property
    def reading(self) -> bool:
        return self._reading is not None

    def read(self, beginning: Beginning, budget_bytes: int) -> bool:
        """Begin to read a portion of what memory lacks of a beginning, as far as the budget goes.

        False where that is nothing. Ask again when it has been taken in.
        """
        pieces = list(beginning.pieces())
        if beginning.snapshot is None:
            sizes = accumulate(piece.size for piece in pieces)
            pieces = [piece for piece, size in zip(pieces, sizes, strict=True) if size <= budget_bytes]
        elif sum(piece.size for piece in pieces) > budget_bytes:
            return False
        missing = [piece for piece in pieces if not piece.in_memory]
        if not missing or (self._without_room and self._without_room == (missing[0], budget_bytes)):
            return False
        missing = first_of(missing, max(_BUSY_PORTION_BYTES, budget_bytes // _READ_SHARE))
        paths = [piece.file for piece in missing if piece.file]
        self._reading = beginning, missing, self._thread.submit(self._folder.read, paths)
        return True

    def take_in(self, store: PrefixStore) -> set[int]:
        """What has been read goes into memory; returns the numbers of the pieces. Broken ones are forgotten."""
        if self._reading is None or not self._reading[2].done():
            return set()
        beginning, missing, future = self._reading
        self._reading = None
        taken = set()
        for piece, read in zip(missing, future.result(), strict=False):
            if piece.file is None:  # deleted meanwhile
                break
            fill = read and self._meant(piece, read)
            if not fill:
                self._forget(store, piece)
                break
            if not fill(store, beginning.blocks):
                self._without_room = piece, store.budget_bytes
                break
            taken.add(piece.number)
        return taken

    def moment(self) -> None:
        """Wait a little for what is being read, when nothing else is to be done."""
        waited: list[Future[Any]] = [self._scan] if self._scan else []
        if self._reading:
            waited.append(self._reading[2])
        if waited:
            wait(waited, _MOMENT_S)

    # ---- writing

    def put_away(self, store: PrefixStore) -> bool:
        """Begin to write what is not on disk yet, the newest first; whether there may be more to do."""
        return self._write(store, store.newest_first, _PORTION_BYTES)

    def save(self, store: PrefixStore, tokens: list[int]) -> bool:
        """Begin to write what memory holds of these tokens, before it has to leave; whether there may be more to do."""
        return self._write(store, lambda: reversed(list(store.find(tokens).held.pieces())), _BUSY_PORTION_BYTES)

    def _write(self, store: PrefixStore, pieces: Callable[[], Iterator[_Piece]], most_bytes: int) -> bool:
        self._note_written(store)
        if self._writing:
            return True
        if not self._open.done() or self._folder.path is None:
            return not self._open.done()
        self.look(store)
        orders = self._orders(pieces(), most_bytes)
        again = {order.path for order in orders}
        obsolete, store.obsolete = [path for path in store.obsolete if path not in again], []
        touched = self._touched(store, orders)
        for order in orders:
            order.piece.file, self._pieces[order.path] = order.path, order.piece
        if orders or obsolete or touched:
            self._writing.append((orders, self._thread.submit(self._folder.write, orders, obsolete, touched)))
        return bool(orders)

    def flush(self, store: PrefixStore, seconds: float) -> None:
        """Write as much as can be written in so long: the worker is about to end."""
        until = time.monotonic() + seconds
        wait([self._open], seconds)
        while (left := until - time.monotonic()) > 0 and self.put_away(store):
            wait([future for _, future in self._writing], left)

    def close(self) -> None:
        """What is being written is given up."""
        self._folder.give_up()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _note_written(self, store: PrefixStore) -> None:
        while self._writing and self._writing[0][1].done():
            orders, future = self._writing.pop(0)
            written, deleted = future.result()
            done = set(written)
            for order in orders:
                if order.path not in done and order.piece.file == order.path:
                    self._refused.add(order.piece.number)
                    self._pieces.pop(order.path, None)
                    store.forget_file(order.piece)
            for path in deleted:
                if piece := self._pieces.pop(path, None):
                    self._refused.add(piece.number)
                    store.forget_file(piece)

    def _orders(self, pieces: Iterator[_Piece], most_bytes: int) -> list[Order]:
        orders: dict[int, Order] = {}
        size = seen = 0
        for piece in pieces:
            seen += piece.size
            if seen > self._limit:  # older ones would push newer ones out
                break
            block = piece.block if isinstance(piece, Snapshot) else piece
            if piece.file or piece.number in orders or (not block.children and piece.end < LEAST_TOKENS):
                continue
            for one in (*block.line(), piece):
                if one.number in self._refused:
                    break
                if one.file is None and one.in_memory and one.number not in orders:
                    if size and size + one.size > most_bytes:
                        return list(orders.values())
                    orders[one.number] = self._order(one)
                    size += one.size
        return list(orders.values())

    def _order(self, piece: _Piece) -> Order:
        home = self._folder.path
        assert home is not None  # noqa: S101 - it is open
        if isinstance(piece, Snapshot):
            block = piece.block
            packed, arrays = pack(piece.states or [])
            heads, views, held = to_numpy(arrays)
            tokens = block.tokens[: piece.position - block.start]
            parent = block.parent.name if block.parent else ""
            head = Head(parent, block.start, tokens, heads, piece.reach, packed)
            return Order(piece, home / (piece.name + STATE), head, views, held, piece.size)
        heads, views, held = to_numpy(piece.arrays or [])
        head = Head(piece.parent.name if piece.parent else "", piece.start, piece.tokens, heads)
        return Order(piece, home / (piece.name + BLOCK), head, views, held, piece.size)

    def _touched(self, store: PrefixStore, orders: list[Order]) -> list[Path]:
        """Files of beginnings that were used: the deepest first, so that nothing is older than what stands on it."""
        used: dict[Path, None] = {}
        lines = [order.piece for order in orders] + store.used()
        self._refused -= {one.number for one in lines}
        for piece in lines:
            block = piece.block if isinstance(piece, Snapshot) else piece
            for one in reversed(block.line()):
                if one.file:
                    used.pop(one.file, None)
                    used[one.file] = None
            if isinstance(piece, Snapshot) and piece.file:
                used = {piece.file: None, **used}
        return list(used)

    # ---- what the folder holds

    def _take_over(self, store: PrefixStore, found: list[tuple[Head, Path, int]]) -> None:
        """Into the tree, the beginnings first; what can't be reached is deleted."""
        blocks = {"": store.tree.root}
        lost = []
        store.version += 1
        for head, path, size in sorted(found, key=lambda one: (one[1].suffix == STATE, one[0].start)):
            parent = blocks.get(head.parent)
            if parent is None or parent.end != head.start:
                lost.append(path)
            elif path.suffix == BLOCK:
                block = store.tree.add(parent, head.tokens)
                blocks[block.name] = block
                block.file, block.size = path, block.size or size
                self._pieces[path] = block
            elif (covering := store.tree.covering(parent, head.tokens)) is None:
                lost.append(path)
            else:
                self._take_over_snapshot(store, covering, head, path, size)
        if lost:
            self._thread.submit(delete, lost)

    def _take_over_snapshot(self, store: PrefixStore, block: Block, head: Head, path: Path, size: int) -> None:
        position = head.start + len(head.tokens)
        snapshot = block.snapshots.get(position)
        if snapshot is None:
            snapshot = Snapshot(block, position, head.reach, size, 0)
            store.place(snapshot)
        snapshot.file = path
        self._pieces[path] = snapshot

    def _meant(self, piece: _Piece, read: Piece) -> Callable[[PrefixStore, Sequence[Block]], bool] | None:
        """How to put into memory what was read; None where it is not what the tree has in this place."""
        block = piece.block if isinstance(piece, Snapshot) else piece
        tokens = block.tokens[: piece.position - block.start] if isinstance(piece, Snapshot) else block.tokens
        parent = block.parent.name if block.parent else ""
        if (read.head.parent, read.head.start, read.head.tokens) != (parent, block.start, tokens):
            return None
        arrays = to_mlx(read.head.arrays, read.arrays)
        if isinstance(piece, Block):
            fits = self._spec.fits_block(arrays, len(tokens))
            return (lambda store, line: store.fill_block(piece, arrays, line)) if fits else None
        try:
            states = unpack(read.head.states, arrays)
            fits = self._spec.fits_states(states, piece.position)
        except (LookupError, TypeError, AttributeError, ValueError):
            return None
        return (lambda store, line: store.fill_snapshot(piece, states, line)) if fits else None

    def _forget(self, store: PrefixStore, piece: _Piece) -> None:
        path = piece.file
        if path is None:
            return
        sys.stderr.write(
            f"plimsoll worker: {path.name}, a stored part of a conversation, can't be used and is dropped\n"
        )
        self._pieces.pop(path, None)
        store.forget_file(piece)
        self._thread.submit(delete, [path])
