"""Prompt lookup: tokens that may come next, taken from where the answer repeats its prompt or itself.

Edits of a file, quotes and JSON keys repeat what was there. One pass over several drafted tokens takes less time than a
pass for each of them, and says after which of them the model would have gone on otherwise. All here is pure: what was
said comes in, drafts come out, and how long passes took decides how long a draft may be, or whether one pays at all.
"""

from collections.abc import Sequence

import msgspec

LENGTHS = (15, 7, 3)
"""The lengths of drafts: a pass reads one token more, and a CPU's BLAS computes 4, 8 and 16 rows fastest."""

# So many tokens in a row have to be those of an earlier place before what followed there is drafted.
_MATCH = 3
# Only the newest tokens of a long prompt are looked at: 200 bytes each.
_MOST_TOKENS = 32_768
# The share of drafted tokens that were right: what is assumed at first, and the weight of each newer one.
_FIRST_RATE = 0.3
_NEW_RATE = 0.12
# A pass with a draft has to be so much faster by the token.
_WORTH = 1.15
# Seconds of a pass over N tokens are assumed to be 1 + 0.14 (N - 1) times those over one, until one was measured.
_ASSUMED_TOKEN = 0.14
_NEW_S = 0.2


class Follower:
    """Follows one answer. ``rate`` is how often a token was the one that lookup would have drafted lately.

    The rate is known without drafting: each token is compared with what would have been drafted in its place.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        """``tokens`` are the prompt's and the answer's so far."""
        self.rate = _FIRST_RATE
        self._passed_over = max(0, len(tokens) - _MOST_TOKENS)
        self._tokens: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}  # the place behind the newest occurrence of ``_MATCH`` tokens
        self._at: int | None = None
        for token in tokens[self._passed_over :]:
            self._add(token)
        self._find()

    @property
    def length(self) -> int:
        """How many tokens there are."""
        return self._passed_over + len(self._tokens)

    def see(self, tokens: Sequence[int]) -> None:
        """The answer has gone on with ``tokens``."""
        for token in tokens:
            if self._at is not None:
                hit = self._tokens[self._at] == token
                self.rate += _NEW_RATE * (hit - self.rate)
                self._at = self._at + 1 if hit else None
            self._add(token)
            if self._at is None:
                self._find()

    def draft(self, most: int) -> list[int]:
        """What followed at the earlier place, so many tokens; nothing where no place is known."""
        if self._at is None:
            return []
        found, period = self._tokens[self._at : self._at + most], len(self._tokens) - self._at
        while len(found) < most:  # what repeats itself goes on repeating
            found.append(found[-period])
        return found

    def _add(self, token: int) -> None:
        if len(self._tokens) >= _MATCH:
            # One token late, so that the newest tokens don't find themselves.
            self._behind[tuple(self._tokens[-_MATCH:])] = len(self._tokens)
        self._tokens.append(token)

    def _find(self) -> None:
        self._at = self._behind.get(tuple(self._tokens[-_MATCH:]))


class PassTimes:
    """Seconds of a pass over one token, and over a draft's tokens with the one before it, as measured lately."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def note(self, tokens: int, seconds: float) -> None:
        known = self._seconds.get(tokens)
        self._seconds[tokens] = seconds if known is None else known + _NEW_S * (seconds - known)

    def ratio(self, tokens: int) -> float:
        """How many passes over one token take as long as one over so many."""
        once, whole = self._seconds.get(1), self._seconds.get(tokens)
        return whole / once if once and whole else 1 + _ASSUMED_TOKEN * (tokens - 1)


class Draft(msgspec.Struct, frozen=True):
    """How many tokens to draft, 0 for none, and how many times faster than without that is expected to be."""

    length: int
    gain: float


def choose_length(rate: float, times: PassTimes, known: int) -> Draft:
    """The best length of a draft where ``known`` tokens could be drafted, each of which is right at this ``rate``."""
    best = Draft(0, 1.0)
    for length in LENGTHS:
        if length > known:
            continue
        expected = 1 + sum(rate**count for count in range(1, length + 1))
        gain = expected / times.ratio(length + 1)
        if gain > max(best.gain, _WORTH):
            best = Draft(length, gain)
    return best


class PromptLookup:
    """Drafts for the one row that decodes. It keeps one row's place: another row begins anew."""

    def __init__(self) -> None:
        self.times = PassTimes()
        self._uid: int | None = None
        self._follower = Follower(())

    def draft(self, uid: int, tokens: list[int], newest: int, most: int) -> list[int]:
        """What to draft behind ``tokens`` and the ``newest`` one, which only grow while ``uid`` is the same."""
        if uid != self._uid:
            self._uid, self._follower = uid, Follower(tokens)
        self._follower.see([*tokens[self._follower.length :], newest])
        known = self._follower.draft(min(most, LENGTHS[0]))
        return known[: choose_length(self._follower.rate, self.times, len(known)).length]
