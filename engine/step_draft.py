"""Collects what one decode step says to each request."""

from dataclasses import dataclass, field

from plimsoll.engine.answer_parts import Parts
from plimsoll.engine.protocol import Step, TokenLogprob, ToolCallPart, Usage


@dataclass(slots=True)
class StepDraft:
    """A ``Step`` in the making; see there."""

    texts: list[tuple[str, str, int]] = field(default_factory=list)
    endings: list[tuple[str, str, Usage]] = field(default_factory=list)
    reasoning: list[tuple[str, str, int]] = field(default_factory=list)
    calls: list[ToolCallPart] = field(default_factory=list)
    logprobs: list[tuple[str, list[TokenLogprob]]] = field(default_factory=list)
    stops: list[tuple[str, str]] = field(default_factory=list)

    def add(self, request_id: str, parts: Parts, tokens: int) -> None:
        """``texts`` always has the count of tokens, whatever they were."""
        if parts.reasoning:
            self.reasoning.append((request_id, parts.reasoning, tokens))
        self.texts.append((request_id, parts.text, tokens))
        self.calls += [ToolCallPart(request_id, index, piece.name, piece.arguments) for index, piece in parts.calls]

    def step(self) -> Step:
        return Step(self.texts, self.endings, self.reasoning, self.calls, self.logprobs, self.stops)
