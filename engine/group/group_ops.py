"""The operations on a generator's rows that the first rank of a group sends to the other ranks, which repeat them.

They hold lengths and numbers only: the tokens themselves are exchanged in the forward passes.
"""

import msgspec


class _Op(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Numbers of rows (uids) and of kept pieces of KV caches are the same on every rank."""


class Insert(_Op, frozen=True):
    """A new row with tokens to read, in ``segments`` of so many; reading stops at the end of each.

    It begins with ``cached`` tokens: of the kept ``blocks`` and ``snapshot``, or of the running row ``row``. The logits
    of a ``scored`` prompt are computed.
    """

    segments: list[int]
    cached: int = 0
    blocks: list[int] = []
    snapshot: int | None = None
    row: int | None = None
    scored: bool = False


class Read(_Op, frozen=True):
    """One chunk of at most ``tokens`` tokens of the prompt of each of these rows."""

    tokens: int
    uids: list[int]


class Decode(_Op, frozen=True):
    """One token of every answer."""


class Remove(_Op, frozen=True):
    """These rows are done; set their KV caches aside where ``keep`` says so, until ``LetGo``."""

    uids: list[int]
    keep: bool


class LetGo(_Op, frozen=True):
    """Nothing more is cut out of the row that was set aside."""

    uid: int


class Keep(_Op, frozen=True):
    """Keep pieces of a row, running or set aside: ``blocks`` are (number, first token, token behind the last).

    Where a ``snapshot`` has a number, it is of the row as it stands, after ``position`` tokens.
    """

    uid: int
    blocks: list[tuple[int, int, int]]
    snapshot: int | None
    position: int


class Settle(_Op, frozen=True):
    """``Generator.settle``: evaluate the KV caches after rows joined or left."""


class Drop(_Op, frozen=True):
    """The first rank has dropped these pieces: no row will begin with them."""

    numbers: list[int]


class GiveBack(_Op, frozen=True):
    """Empty the allocator's caches."""


Op = Insert | Read | Decode | Remove | LetGo | Keep | Settle | Drop | GiveBack
