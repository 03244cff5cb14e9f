"""The batch that decodes on a CPU: tokens are handed out by the pass that chooses them, several where a draft holds."""

import math
from typing import Any, cast

import mlx.core as mx

from plimsoll.engine.chat.row_batch import RowBatch, leaves
from plimsoll.engine.chat.sampling import Seeded, draw
from plimsoll.engine.row_guard import NoFiniteScore


class EagerBatch(RowBatch):
    """A batch that makes a forward pass when it is asked for tokens, and hands out the tokens of that same pass.

    mlx-lm starts the next pass before it hands out a token, so that a GPU never waits for Python. On a CPU that gains
    nothing: to start a pass takes nearly as long as the pass, and every token arrives a whole step late. Here a new
    row's last prompt token is read in the common pass; mlx-lm makes an extra pass for it.
    """

    begins_apart = False

    def __init__(self, model: Any, uids: list[int], inputs: mx.array, *args: Any, **kwargs: Any) -> None:
        self._made = False
        super().__init__(model, uids, inputs, *args, **kwargs)
        self._made = True
        self.next_logprobs = [inputs] * len(uids)  # in the place of what the first pass will give

    @property
    def newest(self) -> dict[int, int]:
        """The last token of every answer that has one, by its row."""
        rows = zip(self.uids, self.next_tokens.tolist(), self.answered, strict=True) if self.uids else ()
        return {uid: token for uid, token, chosen in rows if chosen}

    def step(self) -> tuple[list[int], list[mx.array]]:
        """Not yet where mlx-lm does it, at the end of ``__init__``."""
        return super().step() if self._made else ([], [])

    def next_of(self, draft: list[int]) -> list[Any]:
        """The tokens of the only row as far as they are those of the ``draft``, and the one behind: in one pass.

        Every token is the one that a pass of its own would have given: the sampler chooses each in its own place, after
        the row's processors have seen the tokens before it, and what was drafted wrongly leaves the KV cache again.
        """
        inputs = self.begin_pass()
        read = mx.concatenate([inputs, mx.array(draft, inputs.dtype)])
        logits = self._rows.narrow(self.model(read[None], cache=self.prompt_cache)[0])
        tokens, logprobs, sums = self._choose_along(read, draft, logits)
        totals = cast("list[float]", sums.tolist())
        if not all(math.isfinite(total) for total in totals[: len(tokens)]):
            self._rows.guard.note(self.uids[0], NoFiniteScore())
        reasons: list[str | None] = []
        while len(reasons) < len(tokens) and not (reasons and reasons[-1]):
            reasons.append(self.count_token(0, tokens[len(reasons)]))
        count = len(reasons)
        for cache in leaves(self.prompt_cache):
            cache.trim(len(draft) + 1 - count)
        self.tokens[0].extend([int(inputs.item()), *tokens[: count - 1]])
        self.end_pass(mx.array(tokens[count - 1 : count], inputs.dtype), [logprobs[count - 1]])
        self.next_sums = sums[count - 1 : count]
        responses = [
            self._response(0, token, scores, reason)
            for token, scores, reason in zip(tokens, logprobs, reasons, strict=False)
        ]
        if reasons[-1]:
            self.filter([])
        return responses

    def _choose_along(
        self, read: mx.array, draft: list[int], logits: mx.array
    ) -> tuple[list[int], list[mx.array], mx.array]:
        """Tokens as far as the draft holds and one more, and for each of the places log-probabilities and logsumexps.

        ``logits`` of shape (drafted + 1, vocabulary) are those behind each token that was ``read``.
        """
        if any(self.logits_processors):
            return self._choose_one_by_one(read, draft, logits)
        sums = mx.logsumexp(logits, axis=-1, keepdims=True)
        logprobs = logits - sums
        sampler = (self.samplers or [None])[0] or self.fallback_sampler
        if isinstance(sampler, Seeded):
            chosen = cast("list[int]", draw(sampler.ahead(len(draft) + 1), logprobs).tolist())
        else:
            chosen = cast("list[int]", sampler(logprobs).tolist())
        mx.eval(logprobs)
        right = next((place for place, token in enumerate(draft) if token != chosen[place]), len(draft))
        tokens = chosen[: right + 1]
        if isinstance(sampler, Seeded):
            sampler.position += len(tokens)
        return tokens, list(logprobs[: len(tokens)]), sums.squeeze(-1)

    def _choose_one_by_one(
        self, read: mx.array, draft: list[int], logits: mx.array
    ) -> tuple[list[int], list[mx.array], mx.array]:
        """As above, where the scores of each place depend on the tokens chosen before it."""
        tokens: list[int] = []
        logprobs: list[mx.array] = []
        sums: list[mx.array] = []
        sampler = (self.samplers or [None])[0] or self.fallback_sampler
        for place in range(len(draft) + 1):
            scores = self._processed(0, read[place : place + 1], logits[place : place + 1], [])
            total = mx.logsumexp(scores, axis=-1, keepdims=True)
            scores = scores - total
            token = cast("int", self._sample(0, sampler, scores).item())
            tokens.append(token)
            logprobs.append(scores[0])
            sums.append(total.squeeze(-1))
            if place == len(draft) or token != draft[place] or self.uids[0] in self._rows.guard:
                break
            with self._rows.guard(self.uids[0]):
                for one in self.logits_processors[0]:
                    if advance := getattr(one, "advance", None):  # a grammar or a budget of thoughts
                        advance(token)
        together = mx.concatenate(sums)
        mx.eval(logprobs, together)
        return tokens, logprobs, together

    def _chosen(self) -> tuple[list[int], list[mx.array], list[float]]:
        self.step()
        return self.next_tokens.tolist(), self.next_logprobs, cast("list[float]", self.next_sums.tolist())
