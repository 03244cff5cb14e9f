"""The prefix store: what is kept of prompts and answers in memory, within a budget that others set.

The least recently used pieces leave first, and a piece that others stand on never before them: a conversation that
does not fit keeps its beginning. All methods are the step thread's.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from plimsoll.engine.chat.prefix_store.pieces import Arrays, Row, State, arrays_bytes, assemble, is_plain, leaves
from plimsoll.engine.chat.prefix_store.tree import BLOCK_TOKENS, Block, Snapshot, Step, Tree, tokens_bytes

# New pieces are computed in portions, so that they and the batch they are cut from need little room side by side.
_EVALUATED_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Beginning:
    """The first ``length`` tokens of a prompt: the blocks that hold them, and a snapshot where the model needs one."""

    length: int = 0
    blocks: tuple[Block, ...] = ()
    snapshot: Snapshot | None = None

    def pieces(self) -> Iterator[Block | Snapshot]:
        yield from self.blocks
        if self.snapshot:
            yield self.snapshot


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of a prompt. ``stored`` is longer than ``held`` where the disk has more than memory.

    The prompt leaves the closest known conversation after ``common`` tokens.
    """

    held: Beginning
    stored: Beginning
    common: int


class Mirror(Protocol):
    """Does to pieces on other hosts what is done here; pieces go by their numbers."""

    def keep(self, row: int, blocks: list[tuple[int, int, int]], snapshot: int | None, position: int) -> None:
        """Cut these blocks (number, begin, end) out of a row."""

    def drop(self, numbers: list[int]) -> None:
        """Let go of pieces."""


class PrefixStore:
    """Blocks and snapshots of one model; ``nbytes`` never exceeds the budget."""

    def __init__(
        self, make_caches: Callable[[], list[Any]], budget_bytes: int, *, needs_states: bool | None = None
    ) -> None:
        """``make_caches`` makes the model's empty caches.

        ``needs_states`` is set in a group, where other ranks may have caches that can't be cut at any token.
        """
        self._make_caches = make_caches
        self.needs_states = needs_states_of(make_caches()) if needs_states is None else needs_states
        self._budget = budget_bytes
        self._tree = Tree()
        self._order: OrderedDict[int, Block | Snapshot] = OrderedDict()  # in memory; the most recently used is last
        self._nbytes = 0
        self._numbers = 0
        self._cut_out: list[Arrays] = []
        self._plain = sum(map(is_plain, leaves(make_caches())))
        self.mirror: Mirror | None = None
        self.version = 0
        """Changes whenever ``find`` may find something else."""
        self._used: dict[int, Block | Snapshot] = {}  # ends of what was taken since the disk asked
        self.obsolete: list[Path] = []
        """Files of blocks that longer ones have replaced."""

    def empty_caches(self) -> list[Any]:
        return self._make_caches()

    # ---- what may be kept

    @property
    def nbytes(self) -> int:
        return self._nbytes

    @property
    def budget_bytes(self) -> int:
        return self._budget

    def set_budget(self, budget_bytes: int) -> None:
        """A new bound from now on; what does not fit any more leaves."""
        self._budget = budget_bytes
        self.shrink(self._nbytes - budget_bytes)

    def shrink(self, wanted_bytes: int) -> int:
        """Give back at least so many bytes, or all there are; returns the bytes given back."""
        before = self._nbytes
        while self._order and before - self._nbytes < wanted_bytes:
            self._evict(next(iter(self._order.values())))
        return before - self._nbytes

    def clear(self) -> None:
        self.shrink(self._nbytes + 1)

    def __len__(self) -> int:
        """Pieces in memory."""
        return len(self._order)

    # ---- what is known of a prompt

    def find(self, tokens: list[int]) -> Found:
        """The longest known beginning; at least the last token is left over, for the generator needs one to read."""
        passed, ends = self._tree.walk(tokens)
        most = len(tokens) - 1
        held = self._longest(passed, ends, most, _is_held)
        stored = self._longest(passed, ends, most, _is_known)
        known = ends[0].common if ends else passed[-1].end if passed else 0
        return Found(held, stored, min(known, len(tokens)))

    def take(self, beginning: Beginning) -> list[Any]:
        """New caches that hold a beginning, whose pieces must be in memory; nothing is evaluated yet."""
        self._touch(beginning.blocks, beginning.snapshot)
        last = beginning.snapshot or beginning.blocks[-1]
        self._used[last.number] = last
        blocks = [block.arrays or [] for block in beginning.blocks]
        snapshot = beginning.snapshot
        return assemble(self._make_caches(), blocks, beginning.length, (snapshot and snapshot.states) or [])

    def _longest(
        self, passed: list[Block], ends: list[Step], most: int, has: Callable[[Block | Snapshot], bool]
    ) -> Beginning:
        best, line = Beginning(), []
        for block in passed:
            if not has(block):
                return best
            line.append(block)
            best = self._better(best, line, min(block.end, most), has)
        for end in ends:
            if has(end.block):
                best = self._better(best, [*line, end.block], min(end.common, most), has)
        return best

    def _better(
        self, best: Beginning, line: list[Block], common: int, has: Callable[[Block | Snapshot], bool]
    ) -> Beginning:
        if common <= best.length:
            return best
        if not self.needs_states:
            return Beginning(common, tuple(line))
        last = line[-1]
        for snapshot in (*last.snapshots.values(), *last.reached):
            position = min(common, snapshot.position)
            if position > max(best.length, snapshot.reach - 1, last.start) and has(snapshot):
                best = Beginning(position, tuple(line), snapshot)
        return best

    # ---- keeping

    def put(self, tokens: list[int], row: Row, uid: int = 0, *, later: bool = False) -> int:
        """Keep what ``row`` holds, which is exactly ``tokens``; returns how many of them are kept.

        Where the budget is too small the beginning is kept, unless the model needs a snapshot of the whole.
        ``uid`` is the row's number in a group. With ``later`` the new blocks are not evaluated here, but left to
        ``cut_out``: so a row that leaves can give its memory up layer by layer.
        """
        if not tokens or not row.holds(len(tokens)):
            return 0
        self.version += 1
        states = row.states(len(tokens)) if self.needs_states else []
        parts = [tuple(tokens[start : start + BLOCK_TOKENS]) for start in range(0, len(tokens), BLOCK_TOKENS)]
        if self.needs_states and self._whole_bytes(parts, row, states) > self._budget:
            return 0
        line, made = self._put_blocks(parts, row)
        snapshot = self._put_states(len(tokens), states, line) if self.needs_states else None
        fresh = [array for state in (snapshot.states if snapshot else None) or [] for array in state.arrays()]
        if later:
            self._cut_out += [block.arrays or [] for block in made]
        else:
            fresh += [array for block in made for array in block.arrays or [] if array is not None]
        _evaluate(fresh)
        self._touch(line, snapshot)
        if self.mirror and (made or snapshot):
            cut = [(block.number, block.start, block.end) for block in made]
            self.mirror.keep(uid, cut, snapshot.number if snapshot else None, len(tokens))
        return min(line[-1].end, len(tokens)) if line else 0

    def cut_out(self) -> list[list[mx.array]]:
        """What ``put`` has left to evaluate: arrays of each cache that can be cut, in the order of the caches."""
        blocks, self._cut_out = self._cut_out, []
        arrays = len(blocks[0]) if blocks else 0
        width = max(1, arrays // max(1, self._plain))
        return [
            [array for block in blocks for array in block[first : first + width] if array is not None]
            for first in range(0, arrays, width)
        ]

    def _whole_bytes(self, parts: list[tuple[int, ...]], row: Row, states: list[State]) -> int:
        """What all the blocks and the states of a row take, those that are here already included."""
        size = sum(arrays_bytes(list(state.arrays())) for state in states)
        parent: Block | None = self._tree.root
        start = 0
        for part in parts:
            block = self._tree.covering(parent, part) if parent else None
            if block is None or block.arrays is None:
                size += arrays_bytes(row.cut(start, start + len(part))) + tokens_bytes(part)
            else:
                size += block.size
            parent, start = block, start + len(part)
        return size

    def _put_blocks(self, parts: list[tuple[int, ...]], row: Row) -> tuple[list[Block], list[Block]]:
        """The blocks of a row as far as there is room, and those of them that are new."""
        line: list[Block] = []
        used: set[int] = set()
        made: list[Block] = []
        parent = self._tree.root
        for part in parts:
            block = self._tree.covering(parent, part) or self._tree.add(parent, part)
            if block.arrays is None:
                # A block that is on disk only may be longer than what the row holds of it.
                if len(block.tokens) > len(part):
                    block = self._tree.add(parent, part)
                if not self._fill(block, row.cut(block.start, block.end), used):
                    self._prune(block)
                    break
                made.append(block)
            line.append(block)
            used.add(id(block))
            parent = block
        return line, made

    def _fill(self, block: Block, arrays: Arrays, used: set[int]) -> bool:
        size = arrays_bytes(arrays) + tokens_bytes(block.tokens)
        if not self._make_room(size, used):
            return False
        block.arrays, block.size, block.number = arrays, size, self._number()
        self._enter(block)
        for shorter in self._tree.superseded(block):
            for snapshot in shorter.snapshots.values():
                snapshot.block = block
            block.snapshots |= shorter.snapshots
            block.reached += shorter.reached
            shorter.snapshots, shorter.reached = {}, []
            if shorter.file:
                self.obsolete.append(shorter.file)
                shorter.file = None
            self._evict(shorter)
            self._tree.remove(shorter)
        return True

    def _put_states(self, position: int, states: list[State], line: list[Block]) -> Snapshot | None:
        known = line[-1].snapshots.get(position)
        if known and known.states is not None:
            return known
        size = sum(arrays_bytes(list(state.arrays())) for state in states)
        if line[-1].end < position or not self._make_room(size, {id(block) for block in line}):
            return None
        return self._add_snapshot(line[-1], position, states, size)

    def _add_snapshot(self, block: Block, position: int, states: list[State], size: int) -> Snapshot:
        snapshot = block.snapshots.get(position)
        if snapshot is None:
            reach = max((state.reach for state in states), default=position)
            snapshot = Snapshot(block, position, reach, size, 0)
            self.place(snapshot)
        self._enter_snapshot(snapshot, states, size)
        return snapshot

    def place(self, snapshot: Snapshot) -> None:
        """Let it be found from its block, and from those that it can be cut back to."""
        snapshot.block.snapshots[snapshot.position] = snapshot
        ancestor = snapshot.block.parent
        while ancestor is not None and ancestor.end >= snapshot.reach:
            ancestor.reached.append(snapshot)
            ancestor = ancestor.parent

    # ---- what the disk has

    @property
    def tree(self) -> Tree:
        return self._tree

    def fill_block(self, block: Block, arrays: Arrays, line: Sequence[Block]) -> bool:
        """What was read of a block; False where there is no room beside the blocks before it."""
        self.version += 1
        return block.arrays is not None or self._fill(block, arrays, {id(one) for one in line})

    def fill_snapshot(self, snapshot: Snapshot, states: list[State], line: Sequence[Block]) -> bool:
        """The same for a snapshot."""
        self.version += 1
        if snapshot.states is not None:
            return True
        size = sum(arrays_bytes(list(state.arrays())) for state in states)
        if not self._make_room(size, {id(block) for block in line}):
            return False
        self._enter_snapshot(snapshot, states, size)
        return True

    def forget_file(self, piece: Block | Snapshot) -> None:
        """The piece's file is gone; without it in memory either the piece is."""
        self.version += 1
        piece.file = None
        if isinstance(piece, Snapshot):
            if piece.states is None:
                self._unplace(piece)
                self._prune(piece.block)
        elif piece.arrays is None:
            self._remove(piece)

    def used(self) -> list[Block | Snapshot]:
        """The ends of the beginnings that were taken since this was asked last."""
        used, self._used = list(self._used.values()), {}
        return used

    def newest_first(self) -> Iterator[Block | Snapshot]:
        """What is in memory."""
        return reversed(self._order.values())

    # ---- what leaves

    def _make_room(self, size: int, used: set[int]) -> bool:
        """Room for so many bytes without touching what is used; False where there is not enough."""
        while self._nbytes + size > self._budget:
            oldest = next(iter(self._order.values()), None)
            if oldest is None or id(oldest.block if isinstance(oldest, Snapshot) else oldest) in used:
                return False
            self._evict(oldest)
        return True

    def _evict(self, piece: Block | Snapshot) -> None:
        """Out of memory; the piece stays known where it has a file."""
        if not self._take_out(piece):
            return
        self.version += 1
        if isinstance(piece, Snapshot):
            piece.states = None
            if piece.file is None:
                self._unplace(piece)
            self._prune(piece.block)
            return
        piece.arrays = None
        for snapshot in list(piece.snapshots.values()):
            self._evict(snapshot)
        if piece.file is None:
            self._remove(piece)

    def _remove(self, block: Block) -> None:
        """Out of the tree, with all behind it: nothing there can be reached any more."""
        for child in list(block.children.values()):
            self._remove(child)
        for snapshot in list(block.snapshots.values()):
            self._unplace(snapshot)
            self._leave(snapshot)
        self._leave(block)
        self._tree.remove(block)

    def _leave(self, piece: Block | Snapshot) -> None:
        if piece.file:
            self.obsolete.append(piece.file)
            piece.file = None
        self._take_out(piece)
        if isinstance(piece, Snapshot):
            piece.states = None
        else:
            piece.arrays = None

    def _prune(self, block: Block | None) -> None:
        """Drop blocks at the end of a line that serve nothing: empty ones, and those that lack a needed snapshot."""
        while block is not None and block.parent is not None and not block.children:
            empty = block.arrays is None and block.file is None
            useless = self.needs_states and not block.snapshots
            if not (empty or useless) or block.reached:
                return
            parent = block.parent
            self._remove(block)
            block = parent

    def _unplace(self, snapshot: Snapshot) -> None:
        snapshot.block.snapshots.pop(snapshot.position, None)
        ancestor = snapshot.block.parent
        while ancestor is not None and snapshot in ancestor.reached:
            ancestor.reached.remove(snapshot)
            ancestor = ancestor.parent

    # ---- the order of use

    def _touch(self, blocks: Sequence[Block], snapshot: Snapshot | None) -> None:
        """The deepest first: so nothing is older than what stands on it."""
        if snapshot and snapshot.number in self._order:
            self._order.move_to_end(snapshot.number)
            beyond = snapshot.block.line()[len(blocks) :]
            for block in (*blocks, *beyond)[::-1]:
                if block.number in self._order:
                    self._order.move_to_end(block.number)
            return
        for block in reversed(blocks):
            if block.number in self._order:
                self._order.move_to_end(block.number)

    def _enter(self, piece: Block | Snapshot) -> None:
        self._order[piece.number] = piece
        self._nbytes += piece.size

    def _enter_snapshot(self, snapshot: Snapshot, states: list[State], size: int) -> None:
        snapshot.states, snapshot.size, snapshot.number = states, size, self._number()
        self._enter(snapshot)

    def _take_out(self, piece: Block | Snapshot) -> bool:
        """The reverse of ``_enter``, on all ranks of a group; False where the piece was not in memory."""
        if self._order.pop(piece.number, None) is None:
            return False
        self._nbytes -= piece.size
        if self.mirror:
            self.mirror.drop([piece.number])
        return True

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers


def needs_states_of(caches: list[Any]) -> bool:
    """Whether a model with these caches can be taken up at snapshots only."""
    return not all(is_plain(leaf) for leaf in leaves(caches))


def _is_held(piece: Block | Snapshot) -> bool:
    return (piece.states if isinstance(piece, Snapshot) else piece.arrays) is not None


def _is_known(piece: Block | Snapshot) -> bool:
    return _is_held(piece) or piece.file is not None


def _evaluate(arrays: list[mx.array]) -> None:
    """In portions; an array that is not evaluated holds the whole batch it is cut from."""
    portion: list[mx.array] = []
    size = 0
    for array in arrays:
        portion.append(array)
        size += array.nbytes
        if size >= _EVALUATED_BYTES:
            mx.eval(portion)
            portion, size = [], 0
    mx.eval(portion)
