"""The tree of known beginnings: blocks of tokens, named by what stands before them, and snapshots at positions.

A block holds the plain caches' part of up to ``BLOCK_TOKENS`` tokens. Its name is a hash of its parent's name and its
own tokens, so conversations share the blocks of their common beginning, in memory and on disk. Only full blocks have
children. A snapshot holds the states of all other caches at one position.
"""

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from plimsoll.engine.chat.prefix_store.pieces import Arrays, State

BLOCK_TOKENS = 128
"""Smaller blocks share more of what conversations have in common; larger ones are fewer arrays to put together."""
_TOKEN_BYTES = 40
"""What one remembered token takes in Python, beside the arrays: its place in a tuple and its number."""


@dataclass(slots=True, eq=False)
class Snapshot:
    """The states after ``position`` tokens; ``states`` is None while they are on disk only."""

    block: "Block"
    position: int
    reach: int
    size: int
    number: int
    states: list[State] | None = None
    file: Path | None = None

    @property
    def end(self) -> int:
        return self.position

    @property
    def in_memory(self) -> bool:
        return self.states is not None

    @property
    def name(self) -> str:
        """The file's name: what a snapshot holds depends on the tokens before it only."""
        parent, tokens = self.block.parent, self.block.tokens[: self.position - self.block.start]
        return block_name(parent.name if parent else "", tokens)


@dataclass(slots=True, eq=False)
class Block:
    """Tokens from ``start`` on; ``arrays`` is None while they are on disk only. The root has no tokens."""

    parent: "Block | None"
    tokens: tuple[int, ...]
    name: str
    number: int = 0
    size: int = 0
    arrays: Arrays | None = None
    file: Path | None = None
    start: int = 0
    children: dict[tuple[int, ...], "Block"] = field(default_factory=dict)
    snapshots: dict[int, Snapshot] = field(default_factory=dict)
    reached: list[Snapshot] = field(default_factory=list)
    """Snapshots behind this block that can be cut back to a position within it."""

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    @property
    def in_memory(self) -> bool:
        return self.arrays is not None

    @property
    def full(self) -> bool:
        return len(self.tokens) == BLOCK_TOKENS

    def line(self) -> list["Block"]:
        """The blocks from the beginning to this one."""
        line: list[Block] = []
        block: Block | None = self
        while block is not None and block.parent is not None:
            line.append(block)
            block = block.parent
        return line[::-1]


@dataclass(frozen=True, slots=True)
class Step:
    """A block that a prompt passes through, and up to which position their tokens are the same."""

    block: Block
    common: int


class Tree:
    """Finds and makes blocks; what leaves is decided elsewhere."""

    def __init__(self) -> None:
        self.root = Block(None, (), "")

    def walk(self, tokens: list[int]) -> tuple[list[Block], list[Step]]:
        """The full blocks that ``tokens`` begin with, and those that go on behind them, the longest first."""
        block, passed = self.root, []
        while child := block.children.get(tuple(tokens[block.end : block.end + BLOCK_TOKENS])):
            if not child.full:
                break
            passed.append(child)
            block = child
        rest = tuple(tokens[block.end : block.end + BLOCK_TOKENS])
        ends = [Step(child, block.end + common_prefix(child.tokens, rest)) for child in _begin_alike(block, rest)]
        return passed, sorted(ends, key=lambda end: -end.common)

    def add(self, parent: Block, tokens: tuple[int, ...]) -> Block:
        """The block of these tokens, found or made."""
        if found := parent.children.get(tokens):
            return found
        block = Block(parent, tokens, block_name(parent.name, tokens), start=parent.end)
        parent.children[tokens] = block
        return block

    def superseded(self, block: Block) -> list[Block]:
        """Siblings whose tokens the block begins with."""
        siblings = block.parent.children.values() if block.parent else ()
        return [one for one in siblings if one is not block and block.tokens[: len(one.tokens)] == one.tokens]

    def covering(self, parent: Block, tokens: tuple[int, ...]) -> Block | None:
        """A child of ``parent`` that begins with ``tokens``."""
        for child in _begin_alike(parent, tokens):
            if child.tokens[: len(tokens)] == tokens:
                return child
        return None

    def remove(self, block: Block) -> None:
        """Take a block out, with all that is behind it."""
        if block.parent and block.parent.children.get(block.tokens) is block:
            del block.parent.children[block.tokens]

    def __iter__(self) -> Iterator[Block]:
        """Every block, parents before their children."""
        waiting = list(self.root.children.values())
        while waiting:
            block = waiting.pop()
            yield block
            waiting += block.children.values()


def block_name(parent: str, tokens: tuple[int, ...]) -> str:
    """What content-addresses a block: its tokens and, by its parent's name, all tokens before them."""
    return hashlib.sha256(parent.encode() + b"/" + array("q", tokens).tobytes()).hexdigest()[:32]


def tokens_bytes(tokens: tuple[int, ...]) -> int:
    """What remembering the tokens takes."""
    return _TOKEN_BYTES * len(tokens)


def common_prefix(left: list[int] | tuple[int, ...], right: list[int] | tuple[int, ...]) -> int:
    """How many tokens two prompts share at their beginning; slices are compared in C, so bisect over them."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _begin_alike(parent: Block, tokens: tuple[int, ...]) -> list[Block]:
    """Children whose first token is the same: all that can have anything in common."""
    return [child for child in parent.children.values() if tokens and child.tokens[0] == tokens[0]]


def first_of(pieces: Sequence[Block | Snapshot], most_bytes: int) -> list[Block | Snapshot]:
    """The first one, and those behind it that fit together with it."""
    sizes = accumulate(piece.size for piece in pieces)
    return [piece for piece, size in zip(pieces, sizes, strict=True) if piece is pieces[0] or size <= most_bytes]
