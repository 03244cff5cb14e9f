"""Tells an answer's text apart while it comes: what the model thinks, what it says, what it calls."""

from plimsoll.engine.dialect.answer_plan import AnswerPlan
from plimsoll.engine.dialect.bare_calls import read_bare, read_fence
from plimsoll.engine.dialect.calls.marks import LOOSE, MARKS, Reader
from plimsoll.engine.dialect.calls.writing import Calls, NoCall
from plimsoll.engine.dialect.channels import read_channels
from plimsoll.engine.dialect.parts import Parts
from plimsoll.engine.dialect.recipients import read_recipients
from plimsoll.engine.dialect.template_source import Reading, Source

_FENCE = "```"


class AnswerReader:
    """One answer. ``ended`` is set when nothing that follows may be shown.

    A stop string and what follows it are never shown; what a model thinks and what it calls may hold any text, only
    the answer proper is searched for them.
    """

    def __init__(self, plan: AnswerPlan, stop: tuple[str, ...] = ()) -> None:
        self.plan = plan
        self.source = Source()
        self.calls = Calls(plan.tools, parallel=plan.parallel)
        self.ended = False
        self.stop_found: str | None = None
        self._stop = tuple(text for text in stop if text)
        self._parts = Parts()
        # Templates write white space around thoughts and calls; it is no part of either, nor of the answer.
        self._lead: str | None = ""
        self._trimmed = False
        self._mid_line = False
        self._thought_lead = True
        self._thought_space = ""
        readers = {**MARKS, **LOOSE, _FENCE: read_fence} if plan.tools else {}
        self._readers: dict[str, Reader] = readers
        self._reading = self._all()

    @property
    def called(self) -> bool:
        """Whether the model called a tool."""
        return self.calls.count > 0

    def add(self, text: str) -> Parts:
        """What this text makes certain."""
        self.source.add(text)
        return self._advance()

    def finish(self) -> Parts:
        """What was held back, after the last text."""
        self.source.ended = True
        return self._advance()

    def _advance(self) -> Parts:
        if not self.ended:
            try:
                next(self._reading)
            except StopIteration:
                self.ended = self.ended or not self.source.ended
        parts, self._parts = self._parts, Parts()
        parts.calls += self.calls.take()
        return parts

    def _all(self) -> Reading[None]:
        if self.plan.channels:
            yield from read_channels(self)
        elif self.plan.recipients and self.plan.tools:
            yield from read_recipients(self)
        else:
            if self.plan.open:
                yield from self.think()
            yield from self.answer(())
        self.close()

    def close(self) -> None:
        """White space that nothing followed was the answer's own, unless it stood behind something else."""
        if self._lead and not self._trimmed:
            self._parts.text += self._lead
        self._lead = None

    def answer(self, ends: tuple[str, ...]) -> Reading[str | None]:
        """The answer proper with all that stands between, up to one of ``ends``."""
        plan, thoughts = self.plan, self.plan.thoughts
        around = (thoughts.start, thoughts.end, *thoughts.noise) if thoughts else ()
        marks = (*ends, *self._stop, *around, *self._readers)
        if plan.tools and plan.bare and not ends:
            yield from read_bare(self)
        while not self.ended:
            mark = yield from self.source.until(marks, self.say)
            if mark is None or mark in ends:
                return mark
            if mark in self._stop:
                self.stop_found, self.ended = mark, True
            elif thoughts and mark in around:
                yield from self._around(mark)
                if plan.tools and plan.bare and not ends and not self.called:
                    yield from read_bare(self)
            else:
                yield from self._call(mark)
        return None

    def say(self, text: str) -> None:
        """Text of the answer proper."""
        if self._lead is not None:
            text = self._lead + text
            if not text.strip():
                self._lead = text
                return
            text = text.lstrip() if self._trimmed else text
            self._lead = None
        self._parts.text += text
        line = text.rpartition("\n")
        self._mid_line = bool(line[2].strip()) or (self._mid_line and not line[1])

    def reason(self, text: str) -> None:
        """Text of the thoughts, without the white space at its begin and its end."""
        if self._thought_lead:
            text = text.lstrip()
        text = self._thought_space + text
        kept = text.rstrip()
        self._thought_space = text[len(kept) :]
        self._thought_lead = self._thought_lead and not kept
        self._parts.reasoning += kept

    def skip(self) -> None:
        """A mark was read, which is shown to nobody, nor is the white space around it."""
        self._lead, self._trimmed, self._mid_line = "", True, False

    def _around(self, mark: str) -> Reading[None]:
        """A mark of thoughts or beside them; in the middle of a line it may be a word of the answer."""
        thoughts = self.plan.thoughts
        assert thoughts is not None  # noqa: S101 - else it is no mark
        if thoughts.plain and (self._mid_line if mark == thoughts.start else self._lead is None):
            self.say(mark)
            return
        self.skip()
        if mark == thoughts.start:
            yield from self.think()

    def think(self, ends: tuple[str, ...] = ()) -> Reading[str | None]:
        """Thoughts up to their end or one of ``ends``. A call in them is one where nothing but calls follows it."""
        thoughts, source = self.plan.thoughts, self.source
        self._thought_lead, self._thought_space = True, ""
        closes = (thoughts.end, *ends) if thoughts and not ends else ends
        if thoughts and not ends:
            yield from source.space()
            yield from source.take(thoughts.start)
            if thoughts.spoken:
                self.reason(thoughts.start + "\n")
        readers = {mark: reader for mark, reader in self._readers.items() if mark in MARKS}
        while True:
            mark = yield from source.until((*closes, *readers), self.reason)
            if mark is None or mark in closes:
                self.skip()
                return mark
            begin = source.at
            source.kept += 1
            ended = yield from self._calls_at_the_end(mark, closes)
            source.kept -= 1
            if ended:
                self.skip()
                return None
            source.at = begin
            self.reason(mark)

    def _calls_at_the_end(self, mark: str, closes: tuple[str, ...]) -> Reading[bool]:
        """Whether calls of offered tools follow, and then nothing but the end of the thoughts."""
        self.calls.hold()
        while mark in MARKS:
            try:
                yield from MARKS[mark](self.source, self.calls)
            except NoCall:
                break
            yield from self.source.space()
            mark = yield from self.source.take(*MARKS)
        else:
            yield from self.source.take(*closes)
            yield from self.source.space()
        found = not mark and self.source.at == len(self.source.text) and self.calls.any_held()
        self.calls.release(wanted=found)
        return found

    def _call(self, mark: str) -> Reading[None]:
        """Calls after their mark, or the mark as text."""
        source, reader = self.source, self._readers[mark]
        if mark == _FENCE and self._mid_line:
            self.say(mark)
            return
        begin = source.at
        source.kept += 1
        loose = mark in LOOSE or mark == _FENCE
        if loose:
            self.calls.hold()
        try:
            yield from reader(source, self.calls)
            if loose:
                self.calls.release(wanted=True)
            self.skip()
        except NoCall:
            if loose:
                self.calls.release(wanted=False)
            source.at = begin
            self.say(mark)
        source.kept -= 1
        self.ended = self.ended or self.calls.full
