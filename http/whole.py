"""Answers collected for a client that does not stream."""

from typing import Any

import msgspec

from plimsoll.actors.messages import Delta, Finished, Logprobs, ToolCallDelta, Vectors
from plimsoll.engine.protocol import TokenLogprob, Usage
from plimsoll.http.sse import side_by_side, take_cancelled
from plimsoll.http.stream import Answer


class Call(msgspec.Struct):
    """A whole tool call; ``arguments`` is JSON."""

    name: str = ""
    arguments: str = ""


class Whole(msgspec.Struct):
    """All of one answer. ``reasoning_tokens`` of the completion were for what is not ``text``."""

    text: str = ""
    reasoning: str = ""
    reasoning_tokens: int = 0
    calls: list[Call] = []
    logprobs: list[TokenLogprob] = []
    vectors: Vectors | None = None
    reason: str = "stop"
    usage: Usage = Usage()
    stop: str | None = None

    def add(self, batch: list[Any]) -> None:
        """Take up the replies of a batch, ``Waiting`` aside."""
        for item in batch:
            if isinstance(item, Delta):
                if item.reasoning:
                    self.reasoning += item.text
                    self.reasoning_tokens = item.tokens
                else:
                    self.text += item.text
            elif isinstance(item, Logprobs):
                self.logprobs += item.tokens
            elif isinstance(item, ToolCallDelta):
                self._add_call(item)
            elif isinstance(item, Vectors):
                self.vectors = item
            elif isinstance(item, Finished):
                self.reason, self.usage, self.stop = item.reason, item.usage, item.stop

    def _add_call(self, part: ToolCallDelta) -> None:
        while len(self.calls) <= part.index:
            self.calls.append(Call())
        call = self.calls[part.index]
        call.name += part.name
        call.arguments += part.arguments


async def gather(*answers: Answer) -> list[Whole]:
    """Run them side by side to their ends. The first failure is raised and cancels the others."""
    wholes = [Whole() for _ in answers]
    await side_by_side([_fill(whole, answer) for whole, answer in zip(wholes, answers, strict=True)])
    return wholes


async def _fill(whole: Whole, answer: Answer) -> None:
    async with answer:
        async for batch in answer.batches():
            cancelled = take_cancelled(batch)
            whole.add(batch)
            if cancelled:
                raise cancelled
