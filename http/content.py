"""The parts of a message's content as text: what models without sight and hearing can read of each kind.

All APIs have such parts, under many names. A kind that nobody knows never stops a request: it becomes a short text.
"""

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import msgspec

from plimsoll.http import left_out
from plimsoll.http.body import check_free, refuse, shown

_MEDIA = {
    "image": "an image",
    "image_url": "an image",
    "input_image": "an image",
    "computer_screenshot": "an image",
    "audio": "a sound",
    "audio_url": "a sound",
    "input_audio": "a sound",
    "video": "a video",
    "video_url": "a video",
    "input_video": "a video",
}
_TEXTS = frozenset({"text", "input_text", "output_text", "summary_text", "reasoning_text"})
_FILES = frozenset({"document", "file", "input_file", "container_upload"})
# Only their maker can read these.
_SEALED = frozenset({"encrypted_content", "redacted_thinking"})
_MOST_SHOWN = 4000


class Part(msgspec.Struct, omit_defaults=True):
    """One part of a message's content. Which fields it has depends on ``type``; others are not looked at."""

    type: str | None = None
    text: str | None = None
    refusal: Any = None
    thinking: Any = None
    reasoning: Any = None
    title: Any = None
    filename: Any = None
    name: str | None = None
    id: str | None = None
    tool_name: Any = None
    tool_use_id: str | None = None
    is_error: bool | None = None
    source: Any = None
    content: Any = None
    input: Any = None
    file: Any = None
    file_data: Any = None
    tool: Any = None


def text_of(content: str | Sequence[Part] | None, path: str, *, asked: bool = False) -> str:
    """All of a message's content as one text; null is none.

    ``asked`` says that the content is what the user asks now: a part of it that nobody here can see is refused. Raises
    ``BadRequest`` for that, and for a text part without text.
    """
    if content is None or isinstance(content, str):
        return content or ""
    told = (part_text(part, f"{path}[{index}]", asked=asked) for index, part in enumerate(content))
    return "\n".join(text for text in told if text is not None)


def part_text(part: Part, path: str, *, asked: bool = False) -> str | None:
    """What a model reads of one part, None where it is nothing. Raises ``BadRequest`` as ``text_of``."""
    kind = part.type or "text"
    if kind in _TEXTS:
        if part.text is None:
            raise refuse(f"{path}.text", "is missing, but must be a string")
        return part.text
    if kind in _MEDIA:
        return _unseen(_MEDIA[kind], kind, path, asked=asked)
    if kind in _FILES:
        return _document(part, kind, path, asked=asked)
    if kind in _SEALED:
        return None
    return _told(part, kind, path)


def _told(part: Part, kind: str, path: str) -> str | None:
    """A part that is neither text nor a file: what it says, in words."""
    if kind in ("refusal", "thinking", "reasoning"):
        return _string(getattr(part, kind)) or part.text or None
    if kind == "search_result":
        texts = [_string(part.title), _string(part.source), _inner(part.content, f"{path}.content")]
        return "\n".join(filter(None, texts))
    if kind == "tool_reference":
        return f"[The tool {_string(part.tool_name) or part.name} can be called from now on.]"
    if kind == "tool_result":
        return _inner(part.content, f"{path}.content")
    if kind.endswith("tool_use"):  # server_tool_use, mcp_tool_use: who made the answer ran it
        return f"[The tool {part.name} was called with {_json(part.input, f'{path}.input')}.]"
    return _unknown(part, kind, path)


def _unseen(what: str, kind: str, path: str, *, asked: bool) -> str:
    if asked:
        raise refuse(f"{path}.type", f"is {shown(kind)}, but the models here read text only: leave {what} out")
    left_out.note("part", kind)
    return f"[There is {what} here that this model can't see: it reads text only.]"


def _document(part: Part, kind: str, path: str, *, asked: bool) -> str:
    """The text of a document or a file where it is text; its name alone where it is not."""
    file = part.file if isinstance(part.file, dict) else {}
    names = (part.title, part.filename, file.get("filename"), file.get("file_id"))
    title = next(filter(None, map(_string, names)), "")
    source = part.source if isinstance(part.source, dict) else {}
    text = None
    if source.get("type") == "text":
        text = _string(source.get("data"))
    elif source.get("type") == "content":
        text = _inner(source.get("content"), f"{path}.source.content")
    elif str(source.get("media_type", "")).startswith("text/"):
        text = _decoded(_string(source.get("data")))
    elif data := _string(part.file_data) or _string(file.get("file_data")):
        head, _, body = data.partition(",")
        text = _decoded(body) if head.startswith("data:text/") else None
    named = f" ({title})" if title else ""
    if text is None:
        if asked and kind != "container_upload":
            what = "is a document that is no plain text, and the models here read text only: send its text"
            raise refuse(path, what)
        left_out.note("part", kind)
        return f"[There is a document{named} here that this model can't read: it reads text only.]"
    return f"{title}\n{text}" if title else text


def _decoded(data: str) -> str | None:
    try:
        return base64.b64decode(data, validate=True).decode()
    except (binascii.Error, ValueError):
        return None


def _inner(content: Any, path: str) -> str:
    """The text of content that stands inside a part, whatever it is."""
    if content is None or isinstance(content, str):
        return content or ""
    try:
        parts = msgspec.convert(content if isinstance(content, list) else [content], list[Part])
    except (msgspec.ValidationError, RecursionError):
        return _json(content, path)
    return text_of(parts, path)


def _unknown(part: Part, kind: str, path: str) -> str:
    left_out.note("part", kind)
    if part.text:
        return part.text
    if part.content is not None:
        return f"[{kind[:64]}: {_json(part.content, f'{path}.content')}]"
    return f"[There is a part of type {kind[:64]} here that this model can't read.]"


def _json(value: Any, path: str) -> str:
    check_free(value, path)
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""
