"""Which mark begins which kind of calls. Every model is read for all of them: they are never meant as anything else."""

from collections.abc import Callable

from plimsoll.engine.dialect.calls import tagged_calls as tagged
from plimsoll.engine.dialect.calls.gemma_calls import read_gemma
from plimsoll.engine.dialect.calls.json_calls import read_json_calls
from plimsoll.engine.dialect.calls.named_calls import DEEPSEEK, KIMI, read_mistral, read_section
from plimsoll.engine.dialect.calls.nested_calls import MARK, read_nested
from plimsoll.engine.dialect.calls.pythonic_calls import read_pythonic
from plimsoll.engine.dialect.calls.writing import Calls
from plimsoll.engine.dialect.calls.xtml_calls import read_xtml
from plimsoll.engine.dialect.template_source import Reading, Source

Reader = Callable[[Source, Calls], Reading[None]]


def _json(*ends: str) -> Reader:
    def read(source: Source, calls: Calls) -> Reading[None]:
        yield from read_json_calls(source, calls, ends)

    return read


def _tagged(tags: tagged.Tags, *, opened: bool = False, end: str | None = None) -> Reader:
    def read(source: Source, calls: Calls) -> Reading[None]:
        yield from tagged.read_tagged(source, calls, tags, opened=opened, end=end)

    return read


def _tool_call(source: Source, calls: Calls) -> Reading[None]:
    """Several families have this mark: JSON (Hermes), a tag with the name (Qwen Coder) or the bare name (GLM)."""
    yield from source.space()
    letter = yield from source.peek()
    if letter and letter in "{[":
        yield from read_json_calls(source, calls, ("</tool_call>",))
    elif (yield from source.starts("<function")):
        yield from tagged.read_tagged(source, calls, tagged.QWEN)
    else:
        yield from tagged.read_tagged(source, calls, tagged.GLM)


def _functools(source: Source, calls: Calls) -> Reading[None]:
    source.at -= 1  # the list's bracket belongs to the mark
    yield from read_json_calls(source, calls)


def _python(source: Source, calls: Calls) -> Reading[None]:
    """Llama's mark: JSON or calls in Python. Code that it may write there for its makers' own tool is no call."""
    ends = ("<|python_end|>", "<|eom_id|>", "<|eom|>")
    yield from source.space()
    if (yield from source.peek()) == "{":
        yield from read_json_calls(source, calls, ends)
    else:
        yield from read_pythonic(source, calls, ends)


MARKS: dict[str, Reader] = {
    "<tool_call>": _tool_call,
    "<function=": _tagged(tagged.QWEN, opened=True),
    '<function name="': _tagged(tagged.MINICPM, opened=True),
    "<minimax:tool_call>": _tagged(tagged.MINIMAX),
    "<｜DSML｜function_calls>": _tagged(tagged.DSML, end="</｜DSML｜function_calls>"),
    "<｜DSML｜tool_calls>": _tagged(tagged.DSML, end="</｜DSML｜tool_calls>"),
    "<seed:tool_call>": _tagged(tagged.SEED),
    "<longcat_tool_call>": _tagged(tagged.LONGCAT),
    "<atem:function_calls>": _tagged(tagged.MUSE),
    MARK + "<tool_call>": read_nested,
    "[TOOL_CALLS]": read_mistral,
    "<｜tool▁calls▁begin｜>": lambda source, calls: read_section(source, calls, DEEPSEEK),
    "<｜tool▁call▁begin｜>": lambda source, calls: read_section(source, calls, DEEPSEEK, opened=True),
    "<|tool_calls_section_begin|>": lambda source, calls: read_section(source, calls, KIMI),
    "<|tool_call_begin|>": lambda source, calls: read_section(source, calls, KIMI, opened=True),
    "<|tool_call_start|>": lambda source, calls: read_pythonic(source, calls, ("<|tool_call_end|>",)),
    "<|tool_call>": lambda source, calls: read_gemma(source, calls, "<tool_call|>"),
    "<start_function_call>": lambda source, calls: read_gemma(source, calls, "<end_function_call>"),
    "<|open|>tools<|sep|>": read_xtml,
    "<|tool_call|>": _json("<|/tool_call|>"),
    "<TOOLCALL>": _json("</TOOLCALL>"),
    "<|tools_prefix|>": _json("<|tools_suffix|>"),
    "<tool_calls>": _json("</tool_calls>"),
    "<|START_ACTION|>": _json("<|END_ACTION|>"),
    "<|python_tag|>": _python,
    "<|python_start|>": _python,
    "functools[": _functools,
    "Action:\n```json\n": _json("```"),
    "Action: ```json\n": _json("```"),
}
"""What a mark that opens calls is followed by."""

LOOSE: dict[str, Reader] = {
    "<tools>": _json("</tools>"),
    "<function_call>": _json("</function_call>"),
    "<functioncall>": _json("</functioncall>"),
}
"""Marks that some models invent: what follows is a call where it is one of an offered tool."""
