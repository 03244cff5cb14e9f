"""What a model's chat template makes of a conversation, and what a client gets of an answer, without the model.

    python ops/families.py --table FOLDER...

prints what is known of each model as a table of Markdown. The functions go the way that a request goes: the API's
reader, the prompt maker and the reader of answers.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from plimsoll.engine.chat.grammar import Uncompiled
from plimsoll.engine.chat.prompts import Prompt, PromptMaker
from plimsoll.engine.chat.running import AnswerParts
from plimsoll.engine.dialect.call_form import CallForm
from plimsoll.engine.dialect.parts import Parts
from plimsoll.engine.load.loading import TokenizerReader
from plimsoll.engine.protocol import ChatRequest
from plimsoll.http.bodies import chat_request

_CONTEXT = 10**6
_makers: dict[str, tuple[Any, PromptMaker]] = {}


def render(folder: Path, api: str, body: dict[str, Any]) -> str:
    """The prompt's text for a client's ``body``, special tokens shown. Raises ``PlimsollError`` for a refusal.

    ``api`` is openai, responses, anthropic or ollama; ``folder`` holds config.json and the tokenizer's files.
    """
    tokenizer, maker = _maker(folder)
    return str(tokenizer.decode(_prepared(maker, api, body).tokens, skip_special_tokens=False))


def read(folder: Path, api: str, body: dict[str, Any], pieces: Sequence[str]) -> dict[str, Any]:
    """What a client would get if the model wrote ``pieces``: content, reasoning, calls (name, JSON of arguments)."""
    _, maker = _maker(folder)
    prompt = _prepared(maker, api, body)
    answer = AnswerParts(_Pieces(pieces), prompt.stop, prompt.plan)
    found: dict[str, Any] = {"content": "", "reasoning": "", "calls": []}
    for index in range(len(pieces)):
        _take(found, answer.add(index))
        if answer.ended:
            break
    _take(found, answer.finish())
    return found


def _prepared(maker: PromptMaker, api: str, body: dict[str, Any]) -> Prompt:
    """The request as the batch gets it, its grammar compiled. Raises ``PlimsollError`` for a refusal."""
    prepared = maker.prepare(_request(api, body))
    if isinstance(prepared, Uncompiled):
        prepared.work(last=True)
        return cast("Prompt", prepared.prepared())
    return prepared


class _Pieces:
    """A detokenizer whose tokens are places in a list of texts."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self._pieces = pieces
        self.last_segment = ""

    def add_token(self, token: int) -> None:
        self.last_segment = self._pieces[token]

    def finalize(self) -> None:
        self.last_segment = ""


def _take(found: dict[str, Any], parts: Parts) -> None:
    found["content"] += parts.text
    found["reasoning"] += parts.reasoning
    for index, piece in parts.calls:
        if index == len(found["calls"]):
            found["calls"].append(["", ""])
        found["calls"][index][0] += piece.name
        found["calls"][index][1] += piece.arguments


def _maker(folder: Path) -> tuple[Any, PromptMaker]:
    name = str(folder)
    if name not in _makers:
        tokenizer = TokenizerReader().read(Path(folder)).result()
        _makers[name] = (tokenizer, PromptMaker(tokenizer, _CONTEXT, len(tokenizer)))
    return _makers[name]


def _request(api: str, body: dict[str, Any]) -> ChatRequest:
    return chat_request(api, json.dumps({"model": "m", **body}).encode())


def table(folders: Sequence[Path]) -> str:
    """Families and features as Markdown: a name of a folder in each row."""
    head = (
        "family",
        "system message",
        "later system",
        "turns",
        "tools",
        "calls in history",
        "thoughts",
        "switch",
        "efforts",
        "forced calls",
    )
    rows = [_row(folder) for folder in folders]
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |" for cells in lines)


def _row(folder: Path) -> tuple[str, ...]:
    _, maker = _maker(folder)
    dialect = maker.dialect
    needs, thoughts = dialect.needs, dialect.thoughts
    system = {"own": "own", "user": "in the user's"}[needs.system] + (", one" if needs.leading == "merged" else "")
    calls = {"own": "own", "single": "one at a time", "text": "text"}[needs.calls]
    ids = {"own": "", "letters": ", ids of nine letters", "counted": ", counted ids"}[needs.ids]
    marks = f"`{thoughts.start.strip()}`" if thoughts else "channels" if dialect.channels else "-"
    back = f", back as {needs.thoughts}" if needs.thoughts else ""
    return (
        folder.name,
        system,
        "own" if needs.late == "own" else "marked user's",
        "free" if needs.turns == "own" else "alternate",
        "described" if needs.tools == "described" else needs.tools,
        calls + ids,
        marks + back,
        ", ".join(dialect.switches) or "-",
        ", ".join(dialect.efforts) or "-",
        _forced(dialect.form),
    )


def _forced(form: CallForm) -> str:
    """What a forced call begins with, and that of Hermes where the template shows no form of its own."""
    begin = " ".join(form.begin.split()) or "NAME"
    return f"`{begin}`" + (", one" if form.between is None else "")


if __name__ == "__main__":
    if sys.argv[1:2] != ["--table"]:
        sys.exit("usage: python ops/families.py --table FOLDER...")
    print(table([Path(name) for name in sys.argv[2:]]))
