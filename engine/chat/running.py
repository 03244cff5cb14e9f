"""An answer that is generated or has to wait, its row in the generator, and the code of its own that a step runs."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mlx_lm.tokenizer_utils import StreamingDetokenizer

from plimsoll.engine.chat import prompts
from plimsoll.engine.chat.generator import Generator
from plimsoll.engine.chat.grammar_constraint import Constraint
from plimsoll.engine.chat.prefill_pacing import Prompt as UnreadPrompt
from plimsoll.engine.chat.prefix_store.reuse import Reused
from plimsoll.engine.chat.prompt_scores import PromptScores
from plimsoll.engine.chat.sampling import Processor, Sampler, penalties
from plimsoll.engine.chat.thought_budget import ThoughtBudget
from plimsoll.engine.dialect.answer_plan import AnswerPlan
from plimsoll.engine.dialect.answer_reader import AnswerReader
from plimsoll.engine.dialect.parts import Parts
from plimsoll.engine.protocol import RequestError, Step, TokenLogprob, ToolCallPart, Usage


class AnswerParts:
    """One answer: from its tokens to reasoning, text and tool calls.

    ``ended`` is set when nothing that follows may be shown.
    """

    def __init__(self, detokenizer: StreamingDetokenizer, stop: tuple[str, ...], plan: AnswerPlan) -> None:
        self._detokenizer = detokenizer
        self._reader = AnswerReader(plan, stop)

    @property
    def ended(self) -> bool:
        return self._reader.ended

    @property
    def called(self) -> bool:
        """Whether the model called a tool."""
        return self._reader.called

    @property
    def stop_found(self) -> str | None:
        """The stop string that ended the answer, if one did."""
        return self._reader.stop_found

    def add(self, token: int) -> Parts:
        """What this token makes certain."""
        self._detokenizer.add_token(token)
        return self._reader.add(self._detokenizer.last_segment)

    def finish(self) -> Parts:
        """What was held back, after the last token. A character cut short appears as U+FFFD."""
        if self.ended:
            return Parts()
        # mlx-lm's BPE detokenizer looks the letters of some special tokens up as bytes: they have no text to show.
        with contextlib.suppress(KeyError):
            self._detokenizer.finalize()
        parts = self._reader.add(self._detokenizer.last_segment)
        parts += self._reader.finish()
        return parts


@dataclass(slots=True, eq=False)
class Answer:
    """A request with what was said so far; it outlives the rows that it has in the generator.

    Everything here follows from the prompt, its seed and the tokens that were ``chosen``, so an answer that had to
    pause can go on wherever its ``tokens`` are read again. ``parts`` and ``processors`` have seen each chosen token.
    ``arrived`` numbers the requests in the order in which they came. ``reused`` is what was known of the prompt when
    the answer began. ``scores`` are those of the prompt, until they are sent: with the first token.
    """

    id: str
    prompt: prompts.Prompt
    parts: AnswerParts
    sampler: Sampler
    processors: list[Processor]
    arrived: int
    chosen: list[int] = field(default_factory=list)
    reused: Reused | None = None
    scores: PromptScores | None = None
    left_text: str = ""
    tokens: list[int] = field(init=False)
    """What a row reads before it goes on: the prompt, with what was said before the latest pause."""

    def __post_init__(self) -> None:
        self.tokens = self.prompt.tokens

    @property
    def generated(self) -> int:
        """Tokens that the model chose, without the end-of-text token."""
        return len(self.chosen)

    @property
    def begun(self) -> bool:
        """Whether the request has had a row."""
        return self.reused is not None

    @property
    def said_before(self) -> int:
        """How many of ``tokens`` are the answer's."""
        return len(self.tokens) - len(self.prompt.tokens)

    def replay(self, tokens: Sequence[int]) -> None:
        """Take over what another worker has chosen and sent: everything is as if it had been chosen here."""
        for token in tokens:
            self.parts.add(token)
            for one in steering(self.prompt):
                one.follow(token)
        self.chosen.extend(tokens)
        self.pause()

    def pause(self) -> None:
        """The row is gone: the next one reads the answer so far, too."""
        self.tokens = [*self.prompt.tokens, *self.chosen]
        if self.scores:
            self.scores.begin()

    def usage(self) -> Usage:
        count, known = len(self.prompt.tokens), self.reused or Reused()
        # What an earlier worker has said may be known as well, and is no part of the prompt.
        cached, left_at = min(known.length, count), min(known.left_at, count)
        return Usage(count, self.generated, cached, known.source, left_at, self.left_text)

    @property
    def failure(self) -> RequestError | None:
        """Set where the answer's grammar could not be followed to its end: what was said is not what was asked."""
        constraint = self.prompt.constraint
        if constraint is None or not constraint.failure:
            return None
        sentence = f"The answer's grammar could not be followed: {constraint.failure}. Ask with a simpler schema."
        return RequestError(self.id, "internal_error", sentence)


@dataclass(slots=True)
class Running:
    """An answer that has a row in the generator.

    The row began with what is ``reused``; ``unread`` tokens are left to read, and at ``marks`` the KV cache is kept for
    others. The answer may grow to ``granted`` tokens before it needs more room in memory.
    """

    answer: Answer
    reused: Reused
    granted: int
    marks: tuple[int, ...] = ()
    unread: int = field(init=False)

    def __post_init__(self) -> None:
        self.unread = len(self.tokens) - self.known
        # What was taken over is in the batch now: let go of the copy.
        self.reused = replace(self.reused, caches=None)
        self.answer.reused = self.answer.reused or self.reused

    @property
    def id(self) -> str:
        return self.answer.id

    @property
    def tokens(self) -> list[int]:
        """What the row reads before it decodes."""
        return self.answer.tokens

    @property
    def known(self) -> int:
        """How many of them were not read again."""
        return self.reused.length

    @property
    def generated(self) -> int:
        """Tokens of the whole answer."""
        return self.answer.generated


def processors(prompt: prompts.Prompt) -> list[Processor]:
    """The grammar and the end of thoughts come last: nothing may give back what they forbid."""
    found = penalties(prompt.sampling, len(prompt.tokens))
    return [*found, *steering(prompt)]


def advance(generator: Generator, live: Mapping[int, Running]) -> None:
    """Hand every grammar and budget its newest token before the next step; waits for the queued one if there is any."""
    made = {uid: steering(one.answer.prompt) for uid, one in live.items()}
    if any(made.values()):
        for uid, token in generator.newest.items():
            for one in made.get(uid, ()):
                with generator.guard(uid):
                    one.advance(token)


def room_for_draft(live: Mapping[int, Running]) -> int:
    """How many tokens may be drafted for an answer that runs alone: as many as it has memory for, but for one."""
    return next((one.granted - one.generated - 1 for one in live.values()), 0) if len(live) == 1 else 0


def unread_prompts(generator: Generator, live: Mapping[int, Running]) -> list[UnreadPrompt]:
    """The prompts with more than their last token left to read, in the order in which they joined."""
    groups = [tuple(rows) for rows in generator.side_by_side]
    begun = {uid for rows in groups for uid in rows}
    groups += [(uid,) for uid, one in live.items() if one.unread and uid not in begun]
    left = {rows: max(live[uid].unread for uid in rows) - 1 for rows in groups}
    apart = begun | {uid for uid, one in live.items() if one.answer.scores}
    return [UnreadPrompt(rows, left[rows], rows[0] in apart) for rows in sorted(groups) if left[rows]]


def read_to_the_last(generator: Generator, live: Mapping[int, Running]) -> list[list[int]]:
    """Rows with their last token left to read; apart from the others those whose group has more to read."""
    ready = {uid for uid, one in live.items() if one.unread == 1}
    mixed = [rows for rows in generator.side_by_side if not ready.isdisjoint(rows) and not ready.issuperset(rows)]
    apart = [list(ready.intersection(rows)) for rows in mixed]
    whole = ready.difference(*apart)
    return [*apart, sorted(whole)] if whole else apart


def steering(prompt: prompts.Prompt) -> list[Constraint | ThoughtBudget]:
    """What follows the answer token by token and says what may come next."""
    return [one for one in (prompt.constraint, prompt.thought_budget) if one is not None]


@dataclass(slots=True)
class StepDraft:
    """A ``Step`` in the making; see there."""

    texts: list[tuple[str, str, int]] = field(default_factory=list)
    endings: list[tuple[str, str, Usage]] = field(default_factory=list)
    reasoning: list[tuple[str, str, int]] = field(default_factory=list)
    calls: list[ToolCallPart] = field(default_factory=list)
    logprobs: list[tuple[str, list[TokenLogprob]]] = field(default_factory=list)
    stops: list[tuple[str, str]] = field(default_factory=list)
    tokens: list[tuple[str, int]] = field(default_factory=list)
    prompts: list[tuple[str, list[TokenLogprob]]] = field(default_factory=list)

    def add_prompt(self, answer: Answer) -> None:
        """The scores of the prompt, once."""
        if answer.scores:
            self.prompts.append((answer.id, answer.scores.told))
            answer.scores = None

    def add(self, request_id: str, parts: Parts, tokens: int) -> None:
        """``texts`` always has the count of tokens, whatever they were."""
        if parts.reasoning:
            self.reasoning.append((request_id, parts.reasoning, tokens))
        self.texts.append((request_id, parts.text, tokens))
        self.calls += [ToolCallPart(request_id, index, piece.name, piece.arguments) for index, piece in parts.calls]

    def step(self) -> Step:
        parts = (self.texts, self.endings, self.reasoning, self.calls, self.logprobs, self.stops, self.tokens)
        return Step(*parts, self.prompts)
