"""What a template needs of a conversation, as ``template_probe`` finds it out. The first of each is the default."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Needs:
    """How each part of a conversation has to be put so that the template neither refuses nor drops it."""

    content: Literal["text", "parts"] = "text"
    """Contents are strings, or lists of parts."""
    system: Literal["own", "user"] = "own"
    """The leading system message is one, or stands at the begin of the first user message."""
    leading: Literal["own", "merged"] = "own"
    """Several leading system messages stay, or become one."""
    late: Literal["own", "user"] = "own"
    """System messages later on stay, or become marked user messages."""
    turns: Literal["own", "merged"] = "own"
    """Neighbours of one role stay apart, or become one message."""
    opening: Literal["own", "user"] = "own"
    """A conversation may begin with the assistant, or gets a user message before it."""
    tools: Literal["own", "xml_tools", "functions", "in_system", "described"] = "own"
    """The template reads tools under the usual name, under another, as text of the system message's, or not at all."""
    alone: Literal["own", "system"] = "own"
    """Tools may be told without a system message, or a plain one is put before them."""
    calls: Literal["own", "single", "text"] = "own"
    """Calls stay, stand in a message each, or are text of the assistant's message."""
    arguments: Literal["object", "text"] = "object"
    """Arguments of calls are objects, or JSON's text."""
    ids: Literal["own", "letters", "counted"] = "own"
    """Ids of calls stay, become nine letters and digits, or ``functions.NAME:NUMBER``."""
    results: Literal["own", "named", "user"] = "own"
    """Results of calls stay, are told the tool's name, or become user messages."""
    after_result: Literal["own", "answer"] = "own"
    """A user message may follow a result, or an assistant's message has to stand between."""
    said: Literal["own", "split", "split_past", "result"] = "own"
    """Text beside calls stays, is a message before them (in past turns or always), or is told with the result."""
    joined: bool = False
    """Whether thoughts and text beside calls have to be one text."""
    thoughts: Literal["", "reasoning_content", "reasoning", "thinking", "part"] = ""
    """The key under which the template reads thoughts, or a part of the content; empty where it takes none."""
    bare_history: Literal["own", "text"] = "own"
    """Calls of a request without tools stay, or are text."""
    bad_arguments: Literal["raw", "empty"] = "raw"


LAST_RESORT = Needs(
    system="user", leading="merged", late="user", turns="merged", opening="user",
    tools="described", calls="text", results="user", bare_history="text",
)  # fmt: skip
"""What any template takes that takes a user's message and an answer."""
