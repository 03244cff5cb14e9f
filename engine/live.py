"""A request in mlx-lm's generator."""

from collections.abc import Mapping
from dataclasses import dataclass

from plimsoll.engine import prompts
from plimsoll.engine.answer_parts import AnswerParts
from plimsoll.engine.generator import Generator
from plimsoll.engine.protocol import RequestError, Usage
from plimsoll.engine.sampling import Processor, penalties


@dataclass(slots=True)
class Live:
    """A request in the generator.

    ``unread`` tokens of its prompt are left to read, ``granted`` tokens of answer have room in memory; ``generated``
    counts what the model chose, without the end-of-text token.
    """

    id: str
    prompt: prompts.Prompt
    cached: int
    unread: int
    granted: int
    answer: AnswerParts
    generated: int = 0

    def usage(self) -> Usage:
        return Usage(len(self.prompt.tokens), self.generated, self.cached)

    @property
    def failure(self) -> RequestError | None:
        """Set where the answer's grammar could not be followed to its end: what was said is not what was asked."""
        constraint = self.prompt.constraint
        if constraint is None or not constraint.failure:
            return None
        sentence = f"The answer's grammar could not be followed: {constraint.failure}. Ask with a simpler schema."
        return RequestError(self.id, "internal_error", sentence)


def processors(prompt: prompts.Prompt) -> list[Processor]:
    """The grammar comes last: nothing may give back what it forbids."""
    found = penalties(prompt.sampling, len(prompt.tokens))
    return [*found, prompt.constraint] if prompt.constraint else found


def advance(generator: Generator, live: Mapping[int, Live]) -> None:
    """Hand every grammar its newest token before the next step; waits for the queued one if there are any."""
    constraints = {uid: made for uid, one in live.items() if (made := one.prompt.constraint)}
    if constraints:
        for uid, token in generator.newest.items():
            if uid in constraints:
                constraints[uid].advance(token)
