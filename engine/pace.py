"""How many tokens of prompts one step reads, for running answers wait for it. Pure: measured times are handed in."""

# While answers stream a step that reads may take this many times as long as one that reads nothing; and so many times
# more for each by which the requests that wait outnumber those that stream.
STRETCH = 2.8
_MORE = 1.0
_MOST_STRETCH = 8.0
# A CPU's BLAS computes so many rows at a time, and other numbers up to twice as slowly. Less is not worth a pass over
# the weights and over the KV cache.
_TILE = 16
# Prompts of a fixed chunk that are read together while nobody streams.
_SIDE_BY_SIDE = 4
# Weight of the newest measurement.
_NEW = 0.3


class Pace:
    """Prompt tokens per step.

    While nobody streams ``idle`` tokens: enough for full speed, few enough that who comes or leaves meanwhile is soon
    heard. While answers stream as many as stretch the step to ``STRETCH`` times its usual length, as measured on the
    steps before, ``first`` until that is known. Where the configuration wants a ``fixed`` number, that many per step
    while others stream, and never more of one prompt.

    A step is a sum of passes over the weights, each as long as a step that only decodes, and of a time per token read.
    """

    def __init__(self, *, first: int, idle: int, fixed: int | None = None) -> None:
        self._first = first
        self._idle = idle if fixed is None else _SIDE_BY_SIDE * fixed
        self._fixed = fixed
        self._pass_s: float | None = None
        self._token_s: float | None = None

    @property
    def most(self) -> int:
        """More of one prompt is never read in one step."""
        return self._fixed or self._idle

    @property
    def most_padding(self) -> int:
        """What a short prompt is padded with at most; alone it is not padded."""
        return self._fixed or self._idle // 2

    def room(self, *, streaming: int, waiting: int = 1) -> int:
        """Tokens to read in the next step, over all prompts that are being read.

        So many answers are ``streaming`` and get slower by it, and so many requests are ``waiting`` for it.
        """
        if not streaming:
            return self._idle
        if self._fixed:
            return self._fixed
        if self._pass_s is None or self._token_s is None:
            return self._first
        stretch = min(STRETCH + _MORE * max(0, waiting - streaming), _MOST_STRETCH)
        # One pass decodes and one reads.
        fits = int((stretch - 2) * self._pass_s / self._token_s)
        return max(_TILE, min(fits // _TILE * _TILE, self._idle))

    def per_row(self, rows: int, room: int) -> int:
        """Tokens to read of each of so many prompts, where there is ``room`` for so many in all."""
        return max(1, min(self.most, room // max(1, rows)))

    def note(self, seconds: float, *, read: int, passes: int) -> None:
        """One step took ``seconds`` for so many passes over the weights and read so many tokens of prompts."""
        if seconds <= 0 or not passes:
            return
        if not read:
            self._pass_s = _blend(self._pass_s, seconds / passes)
            return
        rest_s = seconds - passes * (self._pass_s or 0.0)
        self._token_s = _blend(self._token_s, max(rest_s, 0.1 * seconds) / read)


def _blend(old: float | None, new: float) -> float:
    return new if old is None else old + _NEW * (new - old)
