"""How many tokens of prompts one step reads, for running answers wait for it. Pure: measured times are handed in."""

# While answers stream, a step may take this many times as long as one that reads nothing.
STRETCH = 2.5
# Less is not worth a pass over the weights.
_LEAST_TOKENS = 8
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
    """

    def __init__(self, *, first: int, idle: int, fixed: int | None = None) -> None:
        self._first = first
        self._idle = idle if fixed is None else _SIDE_BY_SIDE * fixed
        self._fixed = fixed
        self._decode_s: float | None = None
        self._token_s: float | None = None

    @property
    def most(self) -> int:
        """More of one prompt is never read in one step."""
        return self._fixed or self._idle

    @property
    def most_padding(self) -> int:
        """What a short prompt is padded with at most; alone it is not padded."""
        return self._fixed or self._idle // 2

    def room(self, *, streaming: bool) -> int:
        """Tokens to read in the next step, over all prompts that are being read."""
        if not streaming:
            return self._idle
        if self._fixed:
            return self._fixed
        if self._decode_s is None or self._token_s is None:
            return self._first
        fits = int((STRETCH - 1) * self._decode_s / self._token_s)
        return max(_LEAST_TOKENS, min(fits, self._idle))

    def per_row(self, rows: int, *, streaming: bool) -> int:
        """Tokens to read of each of so many prompts."""
        return max(1, min(self.most, self.room(streaming=streaming) // max(1, rows)))

    def note(self, seconds: float, *, read: int, decoded: int) -> None:
        """One step took ``seconds``, read so many tokens of prompts and decoded so many answers' tokens."""
        if seconds <= 0:
            return
        if decoded and not read:
            self._decode_s = _blend(self._decode_s, seconds)
        elif read:
            # A step that only reads says most; one that also decodes has the usual length of that in it.
            decoding_s = (self._decode_s or 0.0) if decoded else 0.0
            self._token_s = _blend(self._token_s, max(seconds - decoding_s, 0.1 * seconds) / read)


def _blend(old: float | None, new: float) -> float:
    return new if old is None else old + _NEW * (new - old)
