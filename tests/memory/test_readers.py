"""Which readers fail, told once and not for a single miss."""

import pytest

from plimsoll.memory.levels import ReadersState, advance_readers


def told(*samples):
    """What is told at each sample, and who is held to fail in the end."""
    state, news = ReadersState(), []
    for failed in samples:
        state, one = advance_readers(state, tuple(failed))
        news.append(one)
    return news, state.told


@pytest.mark.parametrize(
    ("samples", "news", "failing"),
    [
        ([[], []], [(), ()], set()),
        ([["psi"], []], [(), ()], set()),
        ([["psi"], [], ["psi"], []], [(), (), (), ()], set()),
        ([["psi"], ["psi"], ["psi"]], [(), ("psi",), ()], {"psi"}),
        ([["psi", "host"], ["host", "psi"]], [(), ("host", "psi")], {"host", "psi"}),
        ([["psi"], ["psi"], ["psi", "host"], ["psi", "host"]], [(), ("psi",), (), ("host",)], {"host", "psi"}),
        ([["psi"], ["psi"], []], [(), ("psi",), ()], {"psi"}),
        ([["psi"], ["psi"], [], []], [(), ("psi",), (), ()], set()),
        ([["psi"], ["psi"], [], ["psi"], ["psi"]], [(), ("psi",), (), (), ()], {"psi"}),
    ],
)
def test_the_same_readers_have_to_fail_or_work_twice(samples, news, failing):
    assert told(*samples) == (news, failing)
