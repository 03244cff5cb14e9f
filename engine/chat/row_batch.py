"""mlx-lm's batches, with each row's own code guarded and the logits of unused ids masked."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self, cast

import mlx.core as mx

from plimsoll.engine.chat.sampling import Narrow, Sampler, Seeded, draw
from plimsoll.engine.mlx_lm_internals import DecodingBatch, ReadingBatch
from plimsoll.engine.row_guard import NoFiniteScore, RowGuard, poisons


@dataclass(frozen=True, slots=True)
class Rows:
    """What all batches of one generator share; ``kind`` is the class of the batches that decode."""

    guard: RowGuard
    narrow: Narrow
    kind: "type[RowBatch]"
    scorers: dict[int, Callable[[mx.array], None]] = field(default_factory=dict)
    """By row: what gets the evaluated logits, (tokens, vocabulary), of each portion of its prompt."""


class RowBatch(DecodingBatch):
    """Rows whose logits processors and samplers may raise: the guard records it, and the engine then removes the row.

    A row whose logits have no finite logsumexp (NaN, infinity) is recorded, too. The log-probabilities need it anyway.
    """

    begins_apart = True
    """Whether an extra pass reads the last prompt tokens of new rows."""

    def __init__(self, model: Any, uids: list[int], inputs: mx.array, *args: Any, rows: Rows, **kwargs: Any) -> None:
        self._rows = rows
        # The logsumexp of the logits of each row: of the pass under way, and of the pass before.
        self.next_sums = self.current_sums = mx.zeros(len(uids))
        super().__init__(model, uids, inputs, *args, **kwargs)

    @property
    def newest(self) -> dict[int, int]:
        """The last token of every answer that has one, by its row; waits for the pass that is under way."""
        return dict(zip(self.uids, self.next_tokens.tolist(), strict=True)) if self.uids else {}

    @classmethod
    def none(cls, model: Any, sampler: Sampler, rows: Rows) -> Self:
        """A batch without rows."""
        return cls(model, [], mx.array([], mx.uint32), [], [], [], sampler, [], [], [], rows=rows)

    def extend(self, batch: Any) -> None:
        super().extend(batch)
        self.next_sums = mx.concatenate([self.next_sums, batch.next_sums])

    def filter(self, keep: list[int]) -> None:
        super().filter(keep)
        self.next_sums = self.next_sums[keep] if keep else mx.zeros(0)

    def next(self) -> list[Any]:
        """One token of each row."""
        if not self.uids:
            return []
        tokens, logprobs, sums = self._chosen()
        for uid, total in zip(self.uids, sums, strict=True):
            if not math.isfinite(total):
                self._rows.guard.note(uid, NoFiniteScore())
        reasons = [self.count_token(row, token) for row, token in enumerate(tokens)]
        responses = [self._response(row, token, logprobs[row], reasons[row]) for row, token in enumerate(tokens)]
        if any(reasons):
            self.filter([row for row, reason in enumerate(reasons) if reason is None])
        return responses

    def _chosen(self) -> tuple[list[int], list[mx.array], list[float]]:
        """Tokens that were computed while the last ones were handed out; the next pass begins now."""
        tokens, logprobs = self.step()
        return tokens, logprobs, cast("list[float]", self.current_sums.tolist())

    def _response(self, row: int, token: int, logprobs: mx.array, reason: str | None) -> Any:
        layers = None
        if reason:
            with self._rows.guard.aside("the KV cache of an answer could not be kept"):
                layers = self.extract_cache(row)
        tokens = self.tokens[row] if reason else None
        return self.Response(self.uids[row], token, logprobs, reason, layers, tokens)

    def step(self) -> tuple[list[int], list[mx.array]]:
        """As mlx-lm's, which this follows line by line: one forward pass, and the tokens of the one before."""
        inputs = self.begin_pass()
        self.current_sums = self.next_sums
        logits = self._rows.narrow(self.model(inputs[:, None], cache=self.prompt_cache)[:, -1, :])
        contexts: list[mx.array] = []
        if any(self.logits_processors):
            own = [self._processed(row, inputs, logits[row : row + 1], contexts) for row in range(len(self.uids))]
            logits = mx.concatenate(own, axis=0)
        sums = mx.logsumexp(logits, axis=-1, keepdims=True)
        logprobs = logits - sums
        current_logprobs = self.end_pass(self._sampled(logprobs), list(logprobs))
        self.next_sums = sums.squeeze(-1)
        begun = (self.next_tokens, self.next_logprobs, self.next_sums, contexts)
        mx.async_eval(*begun)  # type: ignore[no-untyped-call]  # its stub has no types
        mx.eval(inputs, current_logprobs, self.current_sums)
        tokens: list[int] = inputs.tolist()
        for known, token in zip(self.tokens, tokens, strict=True):
            known.append(token)
        return tokens, current_logprobs

    def _processed(self, row: int, inputs: mx.array, logits: mx.array, contexts: list[mx.array]) -> mx.array:
        """``logits`` of shape (1, vocabulary) after the row's processors, or as they are where one of them raises."""
        if not (own := self.logits_processors[row]):
            return logits
        context = self.context(row, inputs[row : row + 1])
        contexts.append(context)
        changed = logits
        with self._rows.guard(self.uids[row]):
            for processor in own:
                changed = processor(context, changed)
            if changed.shape == logits.shape:
                return changed
            raise ValueError(f"a logits processor made {changed.shape} of logits of shape {logits.shape}")
        return logits

    def _sampled(self, logprobs: mx.array) -> mx.array:
        """Token ids of shape (rows,), in one call where all rows have samplers of one kind."""
        given = self.samplers or [None] * len(self.uids)
        samplers = [self.fallback_sampler if one is None else one for one in given]
        if len({id(one) for one in samplers}) == 1 or len({getattr(one, "kind", one) for one in samplers}) == 1:
            try:
                return self._sampled_together(samplers, logprobs)
            except BaseException as error:
                if poisons(error):
                    raise
                # Below each row is sampled alone, which shows the row that fails.
        return mx.concatenate([self._sample(row, one, logprobs[row : row + 1]) for row, one in enumerate(samplers)])

    def _sampled_together(self, samplers: list[Sampler], logprobs: mx.array) -> mx.array:
        seeded = [one for one in samplers if isinstance(one, Seeded)]
        return draw(seeded, logprobs) if seeded else samplers[0](logprobs)

    def _sample(self, row: int, sampler: Sampler, logprobs: mx.array) -> mx.array:
        with self._rows.guard(self.uids[row]):
            return sampler(logprobs)
        return cast("mx.array", self.fallback_sampler(logprobs))


class RowPrompts(ReadingBatch):
    """Prompts whose rows go on in a ``RowBatch``."""

    def __init__(self, *args: Any, rows: Rows, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rows = rows

    def copied(self) -> Self:
        batch = super().copied()
        batch.rows = self.rows
        return batch

    def prompt(self, tokens: list[list[int]]) -> None:
        """Read these tokens; the logits of a row that is scored, which is always read alone, go to its scorer."""
        scorer = self.rows.scorers.get(self.uids[0]) if len(self.uids) == 1 and tokens[0] else None
        if scorer is None:
            super().prompt(tokens)
            return
        self.tokens[0].extend(tokens[0])
        logits = self.model(mx.array(tokens), cache=self.prompt_cache)[0]
        mx.eval(logits, [cache.state for cache in self.prompt_cache])
        with self.rows.guard(self.uids[0]):
            scorer(logits)
        del logits
        mx.clear_cache()

    def split(self, indices: list[int]) -> Any:
        """Take these rows out, as a batch. All of them leave with the KV cache as it is; mlx-lm would copy it."""
        if len(indices) < len(self.uids):
            return super().split(indices)
        batch = type(self)(self.model, [], [], rows=self.rows)
        batch.extend(self)
        self.prompt_cache: list[Any] = []
        self.filter([])
        return batch

    def generate(self, tokens: list[list[int]]) -> RowBatch:
        """``tokens`` holds the last one of each row's prompt; this batch is of no use afterwards."""
        return self.rows.kind(
            self.model,
            self.uids,
            mx.array([row[-1] for row in tokens]),
            self.prompt_cache,
            self.tokens,
            self.samplers,
            self.fallback_sampler,
            self.logits_processors,
            self.stop_sequences,
            self.max_tokens,
            rows=self.rows,
        )


def leaves(layers: Any) -> Iterator[Any]:
    """The caches themselves: some models nest several in one layer."""
    for layer in layers:
        if hasattr(layer, "caches"):
            yield from leaves(layer.caches)
        else:
            yield layer
