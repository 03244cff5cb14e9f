"""What the first rank of a group does to the rows of its generator, told to the other ranks for them to do the same.

Only lengths and row numbers: what the tokens are comes with the forward passes themselves.
"""

import msgspec


class _Op(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Numbers of rows (uids) are the same on every rank."""


class Insert(_Op, frozen=True):
    """A new row with ``unread`` tokens to read; it begins with ``cached`` tokens of row ``source``, running or kept."""

    unread: int
    cached: int = 0
    source: int = 0


class Read(_Op, frozen=True):
    """One chunk of at most ``tokens`` tokens of every prompt."""

    tokens: int


class Decode(_Op, frozen=True):
    """One token of every answer."""


class Remove(_Op, frozen=True):
    """These rows are done; ``keep`` their KV caches under their numbers."""

    uids: list[int]
    keep: bool


class Settle(_Op, frozen=True):
    """Carry out what joining and leaving rows put off."""


class Drop(_Op, frozen=True):
    """Kept KV caches that nothing will begin with any more."""

    uids: list[int]


class GiveBack(_Op, frozen=True):
    """Empty the allocator's caches."""


Op = Insert | Read | Decode | Remove | Settle | Drop | GiveBack
