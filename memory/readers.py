"""Which memory readers fail, as something worth telling: a pure function with debounce."""

import msgspec


class ReadersState(msgspec.Struct, frozen=True):
    """``told`` were said to fail; ``before`` failed at the last sample."""

    told: frozenset[str] = frozenset()
    before: frozenset[str] = frozenset()


def advance(state: ReadersState, failed: tuple[str, ...]) -> tuple[ReadersState, tuple[str, ...]]:
    """The state after a sample in which ``failed`` gave nothing, and those of them that are to be told.

    A reader that fails once is not told: the same ones have to fail, or to work again, in two samples in a row.
    """
    now = frozenset(failed)
    if now != state.before:
        return ReadersState(state.told, now), ()
    return ReadersState(now, now), tuple(sorted(now - state.told))
