"""A running batch that hands out every token as soon as it is chosen."""

from typing import Any

from mlx_lm.generate import GenerationBatch


class EagerBatch(GenerationBatch):  # type: ignore[misc] # mlx-lm is untyped
    """mlx-lm's batch begins the next pass before it hands a token out, so that a GPU never waits for Python.

    On a CPU nothing is gained by that: beginning a pass there takes nearly as long as the pass, and every token comes a
    whole step late. This one hands out what was chosen and begins the next pass when it is asked for more. Rows that
    have joined since hand out their first token before any other row is asked for its next one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._handed_out: set[int] = set()

    @property
    def passes_next(self) -> bool:
        """Whether ``next`` makes a pass over the weights: nobody's token waits to be handed out."""
        return bool(self.uids) and self._handed_out.issuperset(self.uids)

    def next(self) -> list[Any]:
        """One token of each row, or the first ones of those that have just joined."""
        if not self.uids:
            return []
        told = self._handed_out if not self.passes_next else set()
        if self.passes_next:
            self._step()
        tokens = self._next_tokens.tolist()
        responses, keep = [], []
        for row, uid in enumerate(self.uids):
            reason = None if uid in told else self._reason(row, tokens[row])
            if reason is None:
                keep.append(row)
            if uid not in told:
                responses.append(self._response(row, tokens[row], reason))
        if len(keep) < len(self.uids):
            self.filter(keep)
        self._handed_out = set(self.uids)
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
