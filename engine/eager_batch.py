"""Batches for a CPU: a token is handed out as soon as it is chosen, and new rows take part in the pass of all."""

from typing import Any

import mlx.core as mx
from mlx_lm.generate import GenerationBatch, PromptProcessingBatch


class EagerBatch(GenerationBatch):  # type: ignore[misc] # mlx-lm is untyped
    """mlx-lm's batch begins the next pass before it hands a token out, so that a GPU never waits for Python.

    On a CPU nothing is gained by that: beginning a pass there takes nearly as long as the pass, and every token comes a
    whole step late. This one makes a pass when it is asked for tokens and hands out what that has chosen. A new row's
    last prompt token is read in the same pass; mlx-lm makes one of its own for it.
    """

    def __init__(self, model: Any, uids: list[int], inputs: mx.array, *args: Any, **kwargs: Any) -> None:
        self._made = False
        super().__init__(model, uids, inputs, *args, **kwargs)
        self._made = True
        self._next_logprobs = [inputs] * len(uids)  # in the place of what the first pass will give

    def _step(self) -> tuple[list[int], list[mx.array]]:
        """Not yet where mlx-lm does it, at the end of ``__init__``."""
        return super()._step() if self._made else ([], [])

    @property
    def newest(self) -> dict[int, int]:
        """The last token of every answer that has one, by its row."""
        rows = zip(self.uids, self._next_tokens.tolist(), self._num_tokens, strict=True) if self.uids else ()
        return {uid: token for uid, token, chosen in rows if chosen}

    def next(self) -> list[Any]:
        """One token of each row."""
        if not self.uids:
            return []
        self._step()
        tokens = self._next_tokens.tolist()
        reasons = [self._reason(row, token) for row, token in enumerate(tokens)]
        responses = [self._response(row, token, reasons[row]) for row, token in enumerate(tokens)]
        if any(reasons):
            self.filter([row for row, reason in enumerate(reasons) if reason is None])
        return responses

    def _reason(self, row: int, token: int) -> str | None:
        self._num_tokens[row] += 1
        if self._matchers[row].advance(token):
            return "stop"
        return "length" if self._num_tokens[row] >= self.max_tokens[row] else None

    def _response(self, row: int, token: int, reason: str | None) -> Any:
        layers = self.extract_cache(row) if reason else None
        tokens = self.tokens[row] if reason else None
        return self.Response(self.uids[row], token, self._next_logprobs[row], reason, layers, tokens)


class EagerPrompts(PromptProcessingBatch):  # type: ignore[misc] # mlx-lm is untyped
    """Prompts whose rows go on in an ``EagerBatch``."""

    def generate(self, tokens: list[list[int]]) -> EagerBatch:
        """``tokens`` is the last one of each row; this batch is of no use afterwards."""
        last = mx.array([row[-1] for row in tokens])
        return EagerBatch(
            self.model,
            self.uids,
            last,
            self.prompt_cache,
            self.tokens,
            self.samplers,
            self.fallback_sampler,
            self.logits_processors,
            self.stop_sequences,
            self.max_tokens,
        )
