"""What the reader of an answer has to know of its model and its request."""

from dataclasses import dataclass

from plimsoll.engine.dialect.thoughts import Thoughts
from plimsoll.engine.protocol import Tool


@dataclass(frozen=True, slots=True)
class AnswerPlan:
    """``open`` is whether the prompt has begun the model's thoughts already.

    ``tools`` are those that may be called, ``parallel`` is whether more than once. ``bare`` is whether an answer
    that is nothing but JSON may be a call, ``bare_native`` whether this model writes all its calls so.
    ``channels`` is for answers in messages with headers (gpt-oss, Muse), ``recipients`` for calls that begin with
    the tool's name on a line of its own (Functionary). ``continued`` is whether the answer goes on with a text that
    the prompt has begun.
    """

    thoughts: Thoughts | None = None
    open: bool = False
    tools: tuple[Tool, ...] = ()
    parallel: bool = True
    bare: bool = True
    bare_native: bool = False
    channels: bool = False
    recipients: bool = False
    continued: bool = False


PLAIN = AnswerPlan()
"""All text is the answer."""
