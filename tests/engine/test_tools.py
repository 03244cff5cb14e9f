"""Tools: how they reach the model, and how its calls are read out of the text."""

import json

import mlx_helpers as helpers
import pytest
import tiny_llama
from mlx_helpers import Run, open_engine, request
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tool_parsers import mistral, pythonic, qwen3_coder
from tokenizers import AddedToken, Tokenizer

from plimsoll.engine import messages
from plimsoll.engine.answer_parts import AnswerParts
from plimsoll.engine.layout import Layout
from plimsoll.engine.protocol import ChatRequest, Sampling, Tool
from plimsoll.engine.tool_calls import CallFormat, json_format, openai_tools
from plimsoll.errors import BadRequest

WEATHER = Tool(
    "get_weather",
    "The weather of a city",
    {
        "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "$defs": {"city": {"enum": ["Oslo", "Paris"]}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
)
TIME = Tool("get_time", "The time", {"type": "object", "properties": {}, "additionalProperties": False})
TOOLS = (WEATHER, TIME)
# What json_tools is recognised by, and a mark for what was passed.
NATIVE = (
    "{% if tools %}TOOLS {{ tools | tojson }} <tool_call>{% endif %}"
    "{% for message in messages %}[{{ message.role }}] {{ message.content }}"
    "{% for tool_call in message.tool_calls or [] %}{% set tool_call = tool_call.function %}"
    "{{ tool_call.name }}({{ tool_call.arguments.city }}){% endfor %}\n{% endfor %}[assistant]"
)
HISTORY = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}},
            {"id": "2", "type": "function", "function": {"name": "get_time", "arguments": {"city": "-"}}},
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "rain"},
    {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "noon"}]},
]


def model(folder, template=None):
    tiny_llama.build(folder, max_position_embeddings=2048)
    if template is not None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    return open_engine(folder)


@pytest.fixture(scope="module")
def generic(tmp_path_factory):
    """A model whose template knows no tools and refuses messages of the role tool."""
    engine = model(tmp_path_factory.mktemp("generic"))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    engine = model(tmp_path_factory.mktemp("native"), NATIVE)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """A model whose marks are single tokens without a text, as Hermes' are."""
    folder = tmp_path_factory.mktemp("marked")
    tiny_llama.build(folder, max_position_embeddings=2048, vocab_size=610)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in ("<tool_call>", "</tool_call>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    engine = open_engine(folder)
    yield engine
    engine.close()


def prompt(engine, chat):
    return engine._model.loaded.tokenizer.decode(engine.prepare(chat).tokens)


# ---- into the prompt


def test_a_template_that_knows_tools_gets_them_as_openai_writes_them(native):
    text = prompt(native, request("hi", tools=TOOLS))
    assert text.startswith("TOOLS [")
    assert '{"type": "function", "function": {"name": "get_time"' in text


def test_no_tool_reaches_the_template_where_none_may_be_called(native, generic):
    for engine in (native, generic):
        assert prompt(engine, request("hi", tools=TOOLS, tool_choice="none")) == prompt(engine, request("hi"))


def test_arguments_of_earlier_calls_reach_the_template_as_objects(native):
    text = prompt(native, ChatRequest(HISTORY, tools=TOOLS))
    assert "[assistant] get_weather(Oslo)get_time(-)[tool] rain[tool] noon[assistant]" in text


def test_arguments_that_are_nested_too_deeply_reach_the_template_as_they_are():
    """The JSON decoder's own recursion was a server error."""
    call = {"function": {"name": "f", "arguments": "[" * 100_000}}
    assert "[[[" in json.dumps(messages.plain([{"role": "assistant", "content": "", "tool_calls": [call]}]))


def test_results_of_many_calls_in_a_row_are_one_message():
    results = [{"role": "tool", "content": str(number)} for number in range(20_000)]
    told = messages.with_tools_described(messages.plain([{"role": "user", "content": "x"}, *results]), ())
    assert [message["role"] for message in told] == ["user", "user"]
    assert told[1]["content"].count("<tool_response>") == 20_000


def test_arguments_that_are_no_json_reach_the_template_as_they_are(generic):
    call = {"function": {"name": "get_time", "arguments": "{broken"}}
    text = prompt(generic, ChatRequest([{"role": "assistant", "content": "", "tool_calls": [call]}]))
    assert '"{broken"' in text


def test_a_template_without_tools_gets_them_described_in_the_system_message(generic):
    text = prompt(generic, request("hi", tools=TOOLS))
    assert text.startswith("<|im_start|>system\nYou may call one or more functions")
    assert json.dumps(openai_tools((TIME,))[0]) in text
    with_own = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert prompt(generic, ChatRequest(with_own, tools=TOOLS)).startswith("<|im_start|>system\nBe brief.\n\nYou may")


def test_calls_and_results_become_text_for_a_template_without_tools(generic):
    text = prompt(generic, ChatRequest(HISTORY, tools=TOOLS))
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>' in text
    results = "<tool_response>\nrain\n</tool_response>\n<tool_response>\nnoon\n</tool_response>"
    assert f"<|im_start|>user\n{results}<|im_end|>" in text


@pytest.mark.parametrize("calls", [[{}], ["x"], {"a": 1}, [{"function": {}}]])
def test_calls_that_are_none_are_refused(native, calls):
    with pytest.raises(BadRequest) as caught:
        native.prepare(ChatRequest([{"role": "assistant", "content": "", "tool_calls": calls}]))
    assert caught.value.param == "messages"


# ---- forced calls


@pytest.mark.parametrize("kind", ["native", "generic", "marked"])
@pytest.mark.parametrize("choice", ["required", "get_weather", "get_time"])
def test_a_forced_call_has_a_known_name_and_valid_arguments(kind, choice, request: pytest.FixtureRequest):
    engine = request.getfixturevalue(kind)
    run = Run(engine)
    for seed in range(4):
        chat = helpers.request("hi", Sampling(seed=seed), tools=TOOLS, tool_choice=choice, max_tokens=900)
        run.submit(str(seed), chat)
    run.finish()
    assert set(run.reasons.values()) == {"tool_calls"}
    for seed in range(4):
        assert run.texts[str(seed)] == ""
        for name, arguments in run.calls[str(seed)]:
            assert choice in (name, "required")
            given = json.loads(arguments)
            assert set(given) == ({"city", "days"} if name == "get_weather" else set())


def test_at_most_one_call_where_calls_may_not_be_parallel(generic):
    run = Run(generic)
    for seed in range(6):
        run.submit(str(seed), request("hi", Sampling(seed=seed), tools=TOOLS, tool_choice="required", max_tokens=300,
                                      parallel_tool_calls=False))  # fmt: skip
    run.finish()
    assert {len(calls) for calls in run.calls.values()} == {1}


def test_arguments_are_streamed_in_pieces(generic):
    run = Run(generic).submit("a", request("hi", Sampling(seed=1), tools=TOOLS, tool_choice="get_weather")).finish()
    assert len(run.pieces["a"]) > 4
    assert json.loads("".join(run.pieces["a"]))["city"] in ("Oslo", "Paris")


@pytest.mark.parametrize("choice", ["required", "get_moon"])
def test_a_choice_without_its_tool_is_refused(generic, choice):
    tools = () if choice == "required" else TOOLS
    with pytest.raises(BadRequest) as caught:
        generic.prepare(request("hi", tools=tools, tool_choice=choice))
    assert caught.value.param == "tool_choice"


def test_parameters_that_are_no_usable_schema_are_refused_when_a_call_is_forced(generic):
    tool = Tool("bad", "", {"properties": {"a": {"type": "strin"}}})
    with pytest.raises(BadRequest) as caught:
        generic.prepare(request("hi", tools=(tool,), tool_choice="required"))
    assert caught.value.param == "tools"
    generic.prepare(request("hi", tools=(tool,)))


# ---- reading calls


class Letters:
    """A detokenizer whose tokens are strings."""

    last_segment = ""

    def add_token(self, token):
        self.last_segment = token

    def finalize(self):
        self.last_segment = ""


def read(text, form=None, *, chunk=3, parallel=True, stop=()):
    """(content, [(name, arguments)], pieces of arguments, ended)."""
    form = form or json_format(TOOLS)
    edges = {"normal": ((form.start, "tool"),), "tool": ((form.end, "normal"),) if form.end else ()}
    answer = AnswerParts(Letters(), stop, Layout(edges, calls=form, parallel=parallel))
    content, calls, pieces = "", [], []
    for index in [*range(0, len(text), chunk), None]:
        parts = answer.finish() if index is None else answer.add(text[index : index + chunk])
        content += parts.text
        for number, piece in parts.calls:
            if piece.name:
                assert number == len(calls)
                calls.append([piece.name, ""])
            calls[number][1] += piece.arguments
            pieces.append(piece.arguments)
        if answer.ended:
            break
    return content, [tuple(call) for call in calls], pieces, answer.ended


CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "O}\\"{slo", "in": [{"a": 1}]}}\n</tool_call>'
GIVEN = ("get_weather", '{"city": "O}\\"{slo", "in": [{"a": 1}]}')


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1000])
def test_calls_are_read_whatever_the_chunks(chunk):
    content, calls, _, _ = read(f"Let me see.\n{CALL}\n{CALL}\n", chunk=chunk)
    assert content == "Let me see.\n"
    assert calls == [GIVEN, GIVEN]


def test_arguments_come_as_they_are_written():
    _, _, pieces, _ = read(CALL, chunk=1)
    assert len(pieces) > 20


def test_an_end_without_the_mark_still_is_a_call():
    assert read(CALL.removesuffix("\n</tool_call>"))[:2] == ("", [GIVEN])
    other = '<tool_call>{"arguments": {"city": "Oslo"}, "name": "get_weather"}'
    assert read(other)[:2] == ("", [("get_weather", '{"city": "Oslo"}')])


def test_arguments_before_the_name_or_as_a_string_are_read_too():
    swapped = '<tool_call>{"arguments": {"a": "ж"}, "name": "f"}</tool_call>'
    assert read(swapped)[1] == [("f", '{"a": "ж"}')]
    text = '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>'
    assert read(text)[1] == [("f", '{"a": 1}')]
    assert read('<tool_call>{"name": "f"}</tool_call>')[1] == [("f", "{}")]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>not JSON</tool_call>",
        "<tool_call>[1]</tool_call> and more",
        '<tool_call>{"name": 1, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": 3}</tool_call>',
        '<tool_call>{"name": "f", "argu',
        "<tool_call>",
        "a <tool_ca",
    ],
)
def test_what_is_no_call_stays_content(text):
    assert read(text)[:2] == (text, [])


def test_nothing_is_shown_after_the_first_call_where_only_one_may_be():
    content, calls, _, ended = read(f"So: {CALL}{CALL} bye", parallel=False)
    assert (content, calls, ended) == ("So: ", [GIVEN], True)


def test_stop_strings_work_before_and_after_a_call_and_not_inside():
    assert read(f"a STOP {CALL}", stop=("STOP",)) == ("a ", [], [], True)
    content, calls, _, ended = read(f"a {CALL} b STOP c", stop=("STOP", "city"))
    assert (content, calls, ended) == ("a b ", [GIVEN], True)


@pytest.mark.parametrize(
    ("parser", "text", "expected"),
    [
        (
            qwen3_coder,
            "<tool_call><function=get_weather><parameter=city>Oslo</parameter><parameter=days>3</parameter></function>",
            [("get_weather", {"city": "Oslo", "days": 3})],
        ),
        (mistral, "[TOOL_CALLS]get_time[ARGS]{}", [("get_time", {})]),
        (
            mistral,
            '[TOOL_CALLS][{"name": "get_time", "arguments": {}}, {"name": "f", "arguments": {"city": "Oslo"}}]',
            [("get_time", {}), ("f", {"city": "Oslo"})],
        ),
        (
            pythonic,
            '<|tool_call_start|>[get_weather(city="Oslo"), get_time()]<|tool_call_end|>',
            [("get_weather", {"city": "Oslo"}), ("get_time", {})],
        ),
    ],
)  # fmt: skip
def test_the_models_own_formats_are_read_by_mlx_lms_parsers(parser, text, expected):
    form = CallFormat(parser.tool_call_start, parser.tool_call_end, parser.parse_tool_call, openai_tools(TOOLS))
    content, calls, _, _ = read(text, form)
    assert content == ""
    assert [(name, json.loads(arguments)) for name, arguments in calls] == expected
    _, first, _, _ = read(text, form, parallel=False)
    assert len(first) == 1


def test_a_format_of_the_model_that_cannot_be_read_stays_content():
    form = CallFormat(qwen3_coder.tool_call_start, qwen3_coder.tool_call_end, qwen3_coder.parse_tool_call)
    assert read("<tool_call><func></tool_call>", form)[:2] == ("<tool_call><func></tool_call>", [])


def test_marks_of_calls_are_plain_text_where_no_tools_were_offered(generic):
    prepared = generic.prepare(request("hi"))
    answer = AnswerParts(Letters(), (), prepared.layout)
    assert answer.add(CALL).text + answer.finish().text == CALL
    assert isinstance(generic._model.loaded.tokenizer, TokenizerWrapper)
