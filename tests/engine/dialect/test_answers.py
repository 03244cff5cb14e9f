"""An answer's text is told apart into thoughts, answer and calls, whatever the pieces in which it comes."""

import json

import pytest

from plimsoll.engine.dialect.answer_plan import AnswerPlan
from plimsoll.engine.dialect.answer_reader import AnswerReader
from plimsoll.engine.dialect.parts import Parts
from plimsoll.engine.dialect.thoughts import KNOWN
from plimsoll.engine.protocol import Tool

MARKS = {known.start: known for known in KNOWN}
PROPERTIES = {
    "place": {"type": "string"},
    "days": {"type": "integer"},
    "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "places": {"type": "array", "items": {"type": "string"}},
    "more": {"type": "object"},
}
TOOLS = (
    Tool("forecast", "", {"type": "object", "properties": PROPERTIES}),
    Tool("clock", "", {"type": "object", "properties": {}}),
)


def plan(thoughts="<think>", **rest):
    return AnswerPlan(MARKS.get(thoughts), **{"tools": TOOLS, **rest})


def read(text, how=None, *, size=10_000, stop=()):
    """(content, reasoning, calls); ``size`` is that of the pieces."""
    reader, parts = AnswerReader(how or plan(), stop), Parts()
    for begin in range(0, len(text), size):
        if not reader.ended:
            parts += reader.add(text[begin : begin + size])
    if not reader.ended:
        parts += reader.finish()
    calls = []
    for index, piece in parts.calls:
        if index == len(calls):
            calls.append(["", ""])
        calls[index][0] += piece.name
        calls[index][1] += piece.arguments
    return parts.text, parts.reasoning, [(name, json.loads(arguments)) for name, arguments in calls]


def same(text, how=None, **rest):
    """What all cuts of the text agree on."""
    whole = read(text, how, **rest)
    for size in (1, 2, 3, 5, 8):
        assert read(text, how, size=size, **rest) == whole, size
    return whole


RAIN = ("forecast", {"place": "Bergen"})
WAYS = {
    "hermes": '<tool_call>\n{"name": "forecast", "arguments": {"place": "Bergen"}}\n</tool_call>',
    "arguments first": '<tool_call>{"arguments": {"place": "Bergen"}, "name": "forecast"}</tool_call>',
    "as OpenAI has it": '<tool_call>{"type": "function", "function": {"name": "forecast", "arguments": '
    '"{\\"place\\": \\"Bergen\\"}"}}</tool_call>',
    "qwen coder": "<tool_call>\n<function=forecast>\n<parameter=place>\nBergen\n</parameter>\n</function>\n"
    "</tool_call>",
    "qwen coder without the opening": "<function=forecast>\n<parameter=place>\nBergen\n</parameter>\n</function>",
    "qwen coder cut off": "<tool_call>\n<function=forecast>\n<parameter=place>\nBergen",
    "glm": "<tool_call>forecast\n<arg_key>place</arg_key>\n<arg_value>Bergen</arg_value>\n</tool_call>",
    "longcat": "<longcat_tool_call>forecast\n<longcat_arg_key>place</longcat_arg_key>\n"
    "<longcat_arg_value>Bergen</longcat_arg_value>\n</longcat_tool_call>",
    "minimax": '<minimax:tool_call>\n<invoke name="forecast">\n<parameter name="place">Bergen</parameter>\n</invoke>\n'
    "</minimax:tool_call>",
    "minimax m3": ']<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name="forecast">]<]minimax[>[<place>Bergen'
    "]<]minimax[>[</place>]<]minimax[>[</invoke>\n]<]minimax[>[</tool_call>",
    "seed": "<seed:tool_call>\n<function=forecast>\n<parameter=place>Bergen</parameter>\n</function>\n"
    "</seed:tool_call>",
    "dsml": '<｜DSML｜function_calls>\n<｜DSML｜invoke name="forecast">\n<｜DSML｜parameter name="place" string="true">'
    "Bergen</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
    "muse": '<atem:function_calls><atem:invoke name="forecast"><atem:parameter name="place">Bergen</atem:parameter>'
    "</atem:invoke></atem:function_calls>",
    "minicpm": '<function name="forecast"><param name="place"><![CDATA[Bergen]]></param></function>',
    "mistral": '[TOOL_CALLS][{"name": "forecast", "arguments": {"place": "Bergen"}, "id": "abcdefghi"}]',
    "mistral since 2025": '[TOOL_CALLS]forecast[ARGS]{"place": "Bergen"}',
    "mistral with an id": '[TOOL_CALLS]forecast[CALL_ID]abcdefghi[ARGS]{"place": "Bergen"}',
    "deepseek v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>forecast\n```json\n"
    '{"place": "Bergen"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "deepseek v3.1": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>forecast<｜tool▁sep｜>"
    '{"place": "Bergen"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "kimi": "<|tool_calls_section_begin|><|tool_call_begin|>functions.forecast:0<|tool_call_argument_begin|>"
    '{"place": "Bergen"}<|tool_call_end|><|tool_calls_section_end|>',
    "kimi k3": '<|open|>tools<|sep|><|open|>call tool="forecast" index="1"<|sep|><|open|>argument key="place" '
    'type="string"<|sep|>Bergen<|close|>argument<|sep|><|close|>call<|sep|><|close|>tools<|sep|>',
    "lfm2": '<|tool_call_start|>[forecast(place="Bergen")]<|tool_call_end|>',
    "gemma": '<|tool_call>call:forecast{place:<|"|>Bergen<|"|>}<tool_call|>',
    "granite": '<|tool_call|>[{"name": "forecast", "arguments": {"place": "Bergen"}}]',
    "phi": '<|tool_call|>[{"name": "forecast", "arguments": {"place": "Bergen"}}]<|/tool_call|>',
    "nemotron": '<TOOLCALL>[{"name": "forecast", "arguments": {"place": "Bergen"}}]</TOOLCALL>',
    "apertus": '<|tools_prefix|>[{"forecast": {"place": "Bergen"}}]<|tools_suffix|>',
    "command r": '<|START_ACTION|>[\n {"tool_call_id": "0", "tool_name": "forecast", "parameters": {"place": "Bergen"}}'
    "\n]<|END_ACTION|>",
    "llama": '<|python_tag|>{"name": "forecast", "parameters": {"place": "Bergen"}}',
    "llama without a mark": '{"name": "forecast", "parameters": {"place": "Bergen"}}',
    "llama 4": '[forecast(place="Bergen")]',
    "glm 4": 'forecast\n{"place": "Bergen"}',
    "a fenced block": '```json\n{"name": "forecast", "arguments": {"place": "Bergen"}}\n```',
}


@pytest.mark.parametrize("way", WAYS)
def test_every_familys_calls_are_read(way):
    assert same(WAYS[way]) == ("", "", [RAIN])


@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("glm 4", "llama 4", "llama without a mark")])
def test_what_stands_before_a_call_is_the_answer(way):
    content, reasoning, calls = same(f"<think>\nso\n</think>\n\nI look.\n{WAYS[way]}")
    assert (content.strip(), reasoning, calls) == ("I look.", "so", [RAIN])


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ('{"place": "a\nb",}', {"place": "a\nb"}),
        ('{"place": "C:\\Users"}', {"place": "C:\\Users"}),
        ("{'place': 'it\\'s', 'days': 1}", {"place": "it's", "days": 1}),
        ('{"place": "say "hi" to"}', {"place": 'say "hi" to'}),
        ('{"place": "</tool_call>", "more": {"a": [true]}}', {"place": "</tool_call>", "more": {"a": [True]}}),
        ('{"places": ["a", "b",], "days": 007}', {"places": ["a", "b"], "days": 7}),
        ("{place: Bergen, note: None}", {"place": "Bergen", "note": None}),
        ("null", {}),
    ],
)  # fmt: skip
def test_json_is_mended_where_it_is_clear_what_was_meant(written, arguments):
    text = f'<tool_call>{{"name": "forecast", "arguments": {written}}}</tool_call> done'
    assert same(text) == ("done", "", [("forecast", arguments)])


@pytest.mark.parametrize("cut", range(40, 96, 5))
def test_arguments_are_json_wherever_an_answer_is_cut(cut):
    text = '<tool_call>{"name": "forecast", "arguments": {"place": "a\\nb", "more": {"a": [1, {"b": "c"}]}, "days": 3}}'
    _, _, calls = same(text[:cut])
    assert [name for name, _ in calls] == ["forecast"]


@pytest.mark.parametrize("way", WAYS)
def test_arguments_are_json_wherever_a_call_of_any_family_is_cut(way):
    """A call that was cut in the middle of an argument's tag had an object without its end."""
    text = WAYS[way].replace("Bergen", "Ber")
    for cut in range(1, len(text)):
        for _, arguments in read(text[:cut])[2]:
            assert isinstance(arguments, dict), text[:cut]


def test_arguments_are_passed_on_while_they_come():
    for way in ("hermes", "qwen coder", "glm", "minimax", "kimi", "deepseek v3.1", "mistral since 2025"):
        reader = AnswerReader(plan())
        text = WAYS[way].replace("Bergen", "Bergen " * 50)
        pieces = [piece for letter in text for _, piece in reader.add(letter).calls]
        assert len(pieces) > 200, way


@pytest.mark.parametrize(
    "value",
    ["  indented", "line\n", "\nline", "x </parameter> y", "</arg_value> x", "<tool_call>", "", " ", "3.1", "null"],
)  # fmt: skip
def test_values_between_tags_come_byte_for_byte(value):
    coder = f"<tool_call>\n<function=forecast>\n<parameter=place>\n{value}\n</parameter>\n</function>\n</tool_call>"
    glm = f"<tool_call>forecast\n<arg_key>place</arg_key>\n<arg_value>{value}</arg_value>\n</tool_call>"
    for text in (coder, glm):
        assert same(text)[2] == [("forecast", {"place": value})]


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("days", "3", 3),
        ("days", "soon", "soon"),
        ("note", "3.10", "3.10"),
        ("note", "null", None),
        ("places", '["a", "b"]', ["a", "b"]),
        ("places", "['a', 'b']", ["a", "b"]),
        ("more", '{"a": 1}', {"a": 1}),
        ("unknown", "5", 5),
        ("unknown", "five", "five"),
    ],
)
def test_values_between_tags_get_the_type_of_the_schema(key, written, value):
    text = f"<tool_call>\n<function=forecast>\n<parameter={key}>\n{written}\n</parameter>\n</function>\n</tool_call>"
    assert same(text)[2] == [("forecast", {key: value})]


def test_several_calls_in_one_block_are_all_read():
    one = '{"name": "clock", "arguments": {}}'
    for block in (f"[{one}, {one}]", f"{one}\n{one}", f"{one}; {one}}}"):
        assert same(f"<tool_call>{block}</tool_call>")[2] == [("clock", {})] * 2


def test_a_bad_call_does_not_lose_the_good_ones():
    text = '<tool_call>{"name": "clock"}</tool_call>\n<tool_call>not a call</tool_call>\n' + WAYS["hermes"]
    content, _, calls = same(text)
    assert (content.strip(), calls) == ("<tool_call>not a call</tool_call>", [("clock", {}), RAIN])


@pytest.mark.parametrize(
    "text",
    [
        "Use the `<tool_call>` tag and `</tool_call>` around it.",
        "Use the `<tool_call>` tag. Then go on.",
        "<tool_call>[1]</tool_call> and more",
        '<tool_call>{"name": 1, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "forecast", "arguments": 3}</tool_call>',
        "<tool_call>",
        "a <tool_ca",
        '{"name": "Ada", "age": 3}',
        '```json\n{"name": "Ada", "arguments": {}}\n```',
        "The <think> tag opens thoughts.",
    ],
)
def test_what_is_no_call_stays_the_answer(text):
    assert same(text) == (text, "", [])


def test_names_are_held_against_the_offered_ones():
    for written in ("functions.forecast", "Forecast", "default_api.forecast"):
        text = f'<tool_call>{{"name": "{written}", "arguments": {{"place": "Bergen"}}}}</tool_call>'
        assert same(text)[2] == [RAIN]


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.start)
def test_every_familys_thoughts_are_told_apart(known):
    opened = "" if known.start == "Here are my reasoning steps:" else known.start
    how = AnswerPlan(known, open=not opened)
    content, reasoning, _ = same(f"{opened}\nso and so\n{known.end}\n\nYes.", how)
    assert (content, reasoning.removeprefix("Here are my reasoning steps:\n")) == ("Yes.", "so and so")


def test_thoughts_that_the_prompt_has_opened_may_be_opened_again():
    for text in ("so\n</think>\n\nYes.", "<think>\nso\n</think>\n\nYes."):
        assert same(text, plan(open=True)) == ("Yes.", "so", [])


def test_a_call_in_thoughts_is_one_where_nothing_follows_it():
    call = WAYS["hermes"]
    assert same(f"<think>\nso\n{call}") == ("", "so", [RAIN])
    assert same(f"so\n{call}\n</think>", plan(open=True)) == ("", "so", [RAIN])
    content, reasoning, calls = same(f"so {call}\nor not\n</think>\n\nNo.", plan(open=True))
    assert (content, reasoning, calls) == ("No.", f"so {call}\nor not", [])
    assert same(f"so {call}</think>{call}", plan(open=True)) == ("", f"so {call}", [RAIN])
    unknown = call.replace("forecast", "unknown")
    assert same(f"<think>so {unknown}") == ("", f"so {unknown}", [])


def test_a_mark_named_in_thoughts_is_a_thought():
    assert same("<think>the <tool_call> tag</think>Done.") == ("Done.", "the <tool_call> tag", [])


def test_nothing_is_shown_after_the_first_call_where_only_one_may_be():
    content, _, calls = same(f"So: {WAYS['hermes']}{WAYS['hermes']} bye", plan(parallel=False))
    assert (content, calls) == ("So: ", [RAIN])


def test_stop_strings_are_looked_for_in_the_answer_alone():
    text = f"<think>STOP</think>a {WAYS['hermes'].replace('Bergen', 'STOP')} b STOP c"
    assert same(text, stop=("STOP",)) == ("a b ", "STOP", [("forecast", {"place": "STOP"})])


def test_marks_are_text_where_no_tools_are_offered():
    assert same(WAYS["hermes"], plan(tools=())) == (WAYS["hermes"], "", [])


# ---- answers in messages with headers

HARMONY = AnswerPlan(tools=TOOLS, channels=True)
BEGIN = "<|channel|>analysis<|message|>so<|end|><|start|>assistant"


def test_channels_tell_thoughts_answer_and_calls_apart():
    assert same(f"{BEGIN}<|channel|>final<|message|>Yes.", HARMONY) == ("Yes.", "so", [])
    for header in (
        "<|channel|>commentary to=functions.forecast <|constrain|>json",
        " to=functions.forecast<|channel|>commentary json",
        " to=functions.forecast<|channel|>analysis",
    ):
        text = f'{BEGIN}{header}<|message|>{{"place": "Bergen"}}'
        assert same(text, HARMONY) == ("", "so", [RAIN])
        assert same(f"{text}<|call|>", HARMONY) == ("", "so", [RAIN])


def test_a_preamble_is_the_answers_and_a_tool_of_the_makers_is_nobodys():
    text = f"{BEGIN}<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=functions.clock"
    assert same(f"{text}<|channel|>commentary<|message|>{{}}", HARMONY) == ("I look.", "so", [("clock", {})])
    assert same(f"{BEGIN} to=python<|channel|>commentary<|message|>print(1)", HARMONY) == ("", "so", [])


def test_text_without_a_header_is_the_answer():
    assert same("Just so.", HARMONY) == ("Just so.", "", [])
    long = "word " * 200
    assert same(long, HARMONY) == (long, "", [])


def test_an_answer_that_goes_on_with_the_prompts_begins_in_the_message():
    assert same("and so on.", AnswerPlan(channels=True, continued=True)) == ("and so on.", "", [])


def test_recipients_stand_on_a_line_of_their_own():
    how = AnswerPlan(tools=TOOLS, recipients=True)
    assert same('all\nI look.>>>forecast\n{"place": "Bergen"}', how) == ("I look.", "", [RAIN])
    assert same('forecast\n{"place": "Bergen"}>>>clock\n{}', how) == ("", "", [RAIN, ("clock", {})])
    assert same("all of it is so", how) == ("all of it is so", "", [])


@pytest.mark.parametrize(
    "ident",
    ["functions.forecast:0", "functions.forecast", "forecast:12", "forecast", "functions_forecast_3", "call_forecast_1",
     "call:forecast:2", "tool.forecast.4"],
)  # fmt: skip
def test_kimi_calls_a_tool_by_whatever_id_it_has_seen(ident):
    """Clients make up ids of other forms, and the model imitates what it has seen."""
    text = (
        f"<|tool_calls_section_begin|><|tool_call_begin|>{ident}<|tool_call_argument_begin|>"
        '{"place": "Bergen"}<|tool_call_end|><|tool_calls_section_end|>'
    )
    assert same(text) == ("", "", [RAIN])
