"""From token ids to the text a client may see: incomplete characters and stop strings are held back."""

import contextlib
from collections.abc import Sequence

from mlx_lm.generate import TextStateMachine
from mlx_lm.tokenizer_utils import StreamingDetokenizer


class AnswerText:
    """One answer. A stop string and what follows it are never shown; where several end at once the longest counts."""

    def __init__(self, detokenizer: StreamingDetokenizer, stop: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        edges = [(text, None) for text in stop if text]
        self._machine = TextStateMachine({"normal": edges}).make_state() if edges else None
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that this token makes certain; may be empty. Sets ``stopped`` when a stop string is complete."""
        self._detokenizer.add_token(token)
        return self._visible(self._detokenizer.last_segment)

    def finish(self) -> str:
        """What was still held back, after the last token. A character cut short appears as U+FFFD."""
        if self.stopped:
            return ""
        # mlx-lm's BPE detokenizer looks the letters of some special tokens up as bytes: they have no text to show.
        with contextlib.suppress(KeyError):
            self._detokenizer.finalize()
        text = self._visible(self._detokenizer.last_segment)
        if self._machine is None or self.stopped:
            return text
        _, held, _ = TextStateMachine.flush(self._machine)
        return text + str(held)

    def _visible(self, text: str) -> str:
        if self._machine is None:
            return text
        self._machine, shown, state = TextStateMachine.step(self._machine, text)
        self.stopped = state is None
        return str(shown)
