"""Tools: how they reach the model, and how its calls are read out of the text."""

import json

import mlx_helpers as helpers
import pytest
import tiny_llama
from mlx_helpers import Run, open_engine, request
from tokenizers import AddedToken, Tokenizer

from plimsoll.engine.dialect.described import openai_tools
from plimsoll.engine.dialect.plain_messages import plain
from plimsoll.engine.protocol import ChatRequest, Sampling, Tool
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
    "{{ tool_call.name }}({% for key, value in tool_call.arguments.items() %}{{ value }}{% endfor %})"
    "{% endfor %}\n{% endfor %}[assistant]"
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


def test_arguments_that_nobody_could_read_reach_the_template_as_text(generic):
    """They were a string where templates want an object, and the template refused the whole conversation."""
    for written in ("{broken", "[" * 100_000, "[1, 2]"):
        call = {"function": {"name": "get_time", "arguments": written}}
        (message,) = plain([{"role": "assistant", "content": "", "tool_calls": [call]}])
        assert message["tool_calls"][0]["function"]["arguments"] == {"_raw": written}
    call = {"function": {"name": "get_time", "arguments": "{broken"}}
    said = {"role": "assistant", "content": "", "tool_calls": [call]}
    assert '{"_raw": "{broken"}' in prompt(generic, ChatRequest([{"role": "user", "content": "hi"}, said]))


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
        helpers.prepare(generic, request("hi", tools=(tool,), tool_choice="required"))
    assert caught.value.param == "tools"
    generic.prepare(request("hi", tools=(tool,)))


@pytest.mark.parametrize("kind", ["generic", "marked"])
def test_a_free_answer_beside_a_strict_tool_runs_to_its_end(kind, request: pytest.FixtureRequest):
    """What a model without any sense calls of a strict tool has arguments that the schema allows."""
    strict = Tool(WEATHER.name, "", WEATHER.parameters, strict=True)
    run = Run(request.getfixturevalue(kind))
    for seed in range(2):
        run.submit(str(seed), helpers.request("hi", Sampling(seed=seed), tools=(strict, TIME), max_tokens=16))
    run.finish()
    assert not run.refused
    assert set(run.reasons.values()) <= {"stop", "length", "tool_calls"}
    for calls in run.calls.values():
        for name, arguments in calls:
            assert name != "get_weather" or set(json.loads(arguments)) == {"city", "days"}
