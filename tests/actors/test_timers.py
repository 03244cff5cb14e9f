"""Messages that come later."""

import queue

import pytest

from plimsoll.actors.timers import ThreadTimers


class Ref:
    def __init__(self):
        self.told = queue.Queue()

    def tell(self, message):
        self.told.put(message)


@pytest.mark.parametrize("delay_s", [1e10, 1e300, float("inf")])
def test_a_message_due_in_centuries_does_not_end_the_thread_that_tells_the_others(delay_s):
    timers, ref = ThreadTimers(), Ref()
    timers.tell_later(delay_s, ref, "never")
    timers.tell_later(0.01, ref, "soon")
    assert ref.told.get(timeout=60) == "soon"
    # Now it waits for the distant one, and must still hear of a nearer one.
    timers.tell_later(0.01, ref, "again")
    assert ref.told.get(timeout=60) == "again"
    timers.close()
