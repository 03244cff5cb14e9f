"""Watches the Supervisor from the front end: nobody else would notice that no request is served any more."""

import asyncio

from plimsoll.actors.messages import GetStatus
from plimsoll.errors import PlimsollError
from plimsoll.http.front import Front
from plimsoll.http.stream import ask

LOOK_S = 1.0
_ANSWER_S = 5.0
# A minute of silence. Counted in questions and not in time, for a machine that slept did not ask.
_QUESTIONS = 12


async def until_failed(front: Front, look_s: float, answer_s: float = _ANSWER_S) -> str:
    """Return, as a sentence, why the Supervisor can't serve any more; while it can, never.

    It is asked every ``look_s`` seconds and has ``answer_s`` to answer.
    """
    unanswered = 0
    while True:
        await asyncio.sleep(look_s)
        if not front.supervisor.is_alive():
            return "the supervisor has died"
        try:
            await ask(front.supervisor, GetStatus, answer_s)
        except TimeoutError:
            unanswered += 1
        except PlimsollError:
            continue  # it answers, if only that it failed; a dead one shows at the next look
        else:
            unanswered = 0
        if unanswered >= _QUESTIONS:
            return f"the supervisor has not answered for {_QUESTIONS * answer_s:.0f} s"
