"""From token ids to the text a client may see: incomplete characters, marks and stop strings are held back."""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

from mlx_lm.generate import TextStateMachine
from mlx_lm.tokenizer_utils import StreamingDetokenizer

from plimsoll.engine.layout import PLAIN, Layout

# What a model thinks and what it calls may hold any text: only the answer proper is searched for stop strings.
_NEVER_STOPPED = ("reasoning", "tool")


class Segment(NamedTuple):
    """Text of one state; ``closed`` is whether the mark that ends this state followed."""

    state: str
    text: str
    closed: bool = False


class AnswerText:
    """One answer, cut into segments at its marks, which are not shown.

    A stop string and what follows it are never shown; where several end at once the longest counts.
    """

    def __init__(self, detokenizer: StreamingDetokenizer, stop: Sequence[str], layout: Layout = PLAIN) -> None:
        self._detokenizer = detokenizer
        edges = {state: list(marks) for state, marks in layout.edges.items()}
        stops: list[tuple[str, str | None]] = [(text, None) for text in stop if text]
        for state in {"normal", layout.initial, *edges}.difference(_NEVER_STOPPED):
            edges[state] = edges.get(state, []) + stops
        self._initial = layout.initial
        self._machine = TextStateMachine(edges).make_state(layout.initial) if any(edges.values()) else None
        self._stop = [text for text in stop if text]
        self.stopped = False
        self.stop_found: str | None = None

    def add(self, token: int) -> list[Segment]:
        """The text that this token makes certain. Sets ``stopped`` when a stop string is complete."""
        self._detokenizer.add_token(token)
        return self._visible(self._detokenizer.last_segment)

    def finish(self) -> list[Segment]:
        """What was still held back, after the last token. A character cut short appears as U+FFFD."""
        if self.stopped:
            return []
        # mlx-lm's BPE detokenizer looks the letters of some special tokens up as bytes: they have no text to show.
        with contextlib.suppress(KeyError):
            self._detokenizer.finalize()
        segments = self._visible(self._detokenizer.last_segment)
        if self._machine is None or self.stopped:
            return segments
        _, held, state = TextStateMachine.flush(self._machine)
        return [*segments, Segment(str(state), str(held))]

    def _visible(self, text: str) -> list[Segment]:
        if self._machine is None:
            return [Segment(self._initial, text)]
        unread = self._machine[3] + text
        self._machine, parts = TextStateMachine.split(self._machine, text)
        segments = [Segment(str(state), shown, closed=True) for state, shown in parts[:-1]]
        state, shown = parts[-1]
        if state is None:
            self.stopped = True
            # The machine does not say which: the first to be complete, the longest of those.
            ends = [(unread.find(one) + len(one), -len(one), one) for one in self._stop if one in unread]
            self.stop_found = min(ends)[2] if ends else None
        else:
            segments.append(Segment(state, shown))
        return segments
