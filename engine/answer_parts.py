"""From segments of an answer's text to what the APIs tell apart: reasoning, the answer proper, tool calls."""

from dataclasses import dataclass, field
from typing import Self

from mlx_lm.tokenizer_utils import StreamingDetokenizer

from plimsoll.engine.answer_text import AnswerText, Segment
from plimsoll.engine.layout import Layout
from plimsoll.engine.tool_calls import CallPiece, CallReader


@dataclass(slots=True)
class Parts:
    """What one token made certain; ``calls`` holds (index, piece)."""

    text: str = ""
    reasoning: str = ""
    calls: list[tuple[int, CallPiece]] = field(default_factory=list)

    def __iadd__(self, later: "Parts") -> Self:
        self.text += later.text
        self.reasoning += later.reasoning
        self.calls += later.calls
        return self


class AnswerParts:
    """One answer. ``ended`` is set when nothing that follows may be shown."""

    def __init__(self, detokenizer: StreamingDetokenizer, stop: tuple[str, ...], layout: Layout) -> None:
        self._text = AnswerText(detokenizer, stop, layout)
        self._layout = layout
        self._call: CallReader | None = None
        self._calls = 0
        # Templates write line breaks around thoughts and calls; they are no part of either, nor of the answer.
        self._at_start = layout.initial == "reasoning"
        self.ended = False

    @property
    def called(self) -> bool:
        """Whether the model called a tool."""
        return self._calls > 0

    @property
    def stop_found(self) -> str | None:
        """The stop string that ended the answer, if one did."""
        return self._text.stop_found

    def add(self, token: int) -> Parts:
        return self._route(self._text.add(token))

    def finish(self) -> Parts:
        """What was held back, after the last token."""
        if self.ended:
            return Parts()
        parts = self._route(self._text.finish())
        if self._call is not None and not self.ended:
            self._close_call(parts, complete=not (self._layout.calls and self._layout.calls.end))
        return parts

    def _route(self, segments: list[Segment]) -> Parts:
        parts = Parts()
        for segment in segments:
            if self.ended:
                break
            if segment.state == "tool":
                self._add_call(parts, segment)
                continue
            text = segment.text.lstrip() if self._at_start else segment.text
            if segment.state == "reasoning":
                parts.reasoning += text
            else:
                parts.text += text
            self._at_start = segment.closed or (self._at_start and not text)
        self.ended = self.ended or self._text.stopped
        return parts

    def _add_call(self, parts: Parts, segment: Segment) -> None:
        if self._call is None:
            assert self._layout.calls is not None  # noqa: S101 - else no mark leads here
            self._call = CallReader(self._layout.calls)
        self._note(parts, self._call.add(segment.text))
        if segment.closed:
            self._close_call(parts, complete=True)

    def _close_call(self, parts: Parts, *, complete: bool) -> None:
        assert self._call is not None  # noqa: S101 - asked before
        pieces, text = self._call.close(complete=complete)
        self._note(parts, pieces)
        parts.text += text
        self._call = None
        self._at_start = not text
        self.ended = self.ended or (self.called and not self._layout.parallel)

    def _note(self, parts: Parts, pieces: list[CallPiece]) -> None:
        for piece in pieces:
            if piece.name and self.called and not self._layout.parallel:
                return
            self._calls += bool(piece.name)
            parts.calls.append((self._calls - 1, piece))
