"""What a scripted Supervisor says to a chat; ``system.scripts[m.Chat]`` takes one."""

from collections.abc import Callable
from typing import Any

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Failed, Finished
from plimsoll.engine.protocol import Usage

USAGE = Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1)


def sends(*items: Any, reason: str = "stop", usage: Usage = USAGE) -> Callable[[m.Chat], None]:
    """These items, then the ending."""
    return _each(*items, Finished(reason, usage))


def fails(error: Exception, *first: Any) -> Callable[[m.Chat], None]:
    return _each(*first, Failed(error))


def _each(*items: Any) -> Callable[[m.Chat], None]:
    def script(chat: m.Chat) -> None:
        for item in items:
            chat.reply.send(item)

    return script
