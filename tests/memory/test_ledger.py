"""Whom to unload."""

from plimsoll.memory.ledger import Candidate, victims

OLD = Candidate("old", 1.0, idle=True, pinned=False)
BUSY = Candidate("busy", 2.0, idle=False, pinned=False)
PINNED = Candidate("pinned", 3.0, idle=True, pinned=True)
NEWER = Candidate("newer", 4.0, idle=True, pinned=False)
LAST = Candidate("last", 5.0, idle=True, pinned=False)


def test_a_normal_clean_up_keeps_the_last_used_the_busy_and_the_pinned() -> None:
    assert victims([LAST, NEWER, PINNED, BUSY, OLD], aggressive=False) == ["old", "newer"]


def test_an_aggressive_clean_up_takes_all() -> None:
    assert victims([LAST, PINNED, BUSY], aggressive=True) == ["busy", "pinned", "last"]


def test_one_model_alone_is_never_a_victim_of_a_normal_clean_up() -> None:
    assert victims([LAST], aggressive=False) == []
    assert victims([], aggressive=False) == []
