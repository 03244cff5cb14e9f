"""What a model thinks before it answers is told apart from the answer."""

import json

import pytest
import tiny_llama
from mlx_helpers import Run, open_engine, request
from tokenizers import AddedToken, Tokenizer

from plimsoll.engine.protocol import Format, Sampling
from plimsoll.errors import BadRequest

TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}[assistant]{{ mood }}"
    "{% if enable_thinking is defined and enable_thinking %}<think>\n"
    "{% elif enable_thinking is defined %}<think>\n\n</think>\n\n{% endif %}"
)
ONE = {"const": [1]}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """A random model with marks for thinking, which its template opens on demand."""
    folder = tmp_path_factory.mktemp("thinking")
    tiny_llama.build(folder, vocab_size=610)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in ("<think>", "</think>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TEMPLATE}))
    engine = open_engine(folder)
    engine.marks = tuple(engine._model.loaded.tokenizer.convert_tokens_to_ids(mark) for mark in ("<think>", "</think>"))
    assert engine._model.loaded.tokenizer.has_thinking
    yield engine
    engine.close()


def ask(engine, *, start=0.0, end=0.0, **rest):
    """A greedy request with the marks made likelier."""
    bias = {engine.marks[0]: start, engine.marks[1]: end}
    return request("hello", Sampling(temperature=0, logit_bias=bias), **{"max_tokens": 12, **rest})


def text_of(engine, chat):
    return engine._model.loaded.tokenizer.decode(engine.prepare(chat).tokens)


def test_thinking_is_left_to_the_template_unless_someone_asks(engine):
    assert text_of(engine, request("hi")).endswith("[assistant]")
    assert text_of(engine, request("hi", thinking=True)).endswith("[assistant]<think>\n")
    assert text_of(engine, request("hi", thinking=False)).endswith("[assistant]<think>\n\n</think>\n\n")


def test_template_arguments_are_passed_on_and_the_servers_own_are_refused(engine):
    assert text_of(engine, request("hi", template_kwargs={"mood": "!"})).endswith("[assistant]!")
    assert text_of(engine, request("hi", template_kwargs={"enable_thinking": True})).endswith("<think>\n")
    for name in ("chat_template", "tokenize", "tools", "add_generation_prompt"):
        with pytest.raises(BadRequest) as caught:
            engine.prepare(request("hi", template_kwargs={name: "x"}))
        assert caught.value.param == "chat_template_kwargs"


def test_an_answer_begins_as_reasoning_where_the_prompt_has_opened_it(engine):
    run = Run(engine).submit("a", ask(engine, thinking=True, end=-100)).finish()
    assert run.texts["a"] == ""
    assert run.reasoning["a"]
    assert run.usage["a"].completion_tokens == 12


def test_reasoning_ends_at_its_mark(engine):
    run = Run(engine).submit("a", ask(engine, thinking=True, end=-100, max_tokens=5))
    run.submit("b", ask(engine, thinking=True, end=100, max_tokens=3)).finish()
    assert run.reasons == {"a": "length", "b": "length"}
    assert run.reasoning.get("b", "") == ""
    # Before anything was said a mark that closes nothing is no word of the answer's either.
    assert run.texts["b"] == ""


def test_a_model_that_opens_its_thoughts_itself_is_understood(engine):
    run = Run(engine).submit("a", ask(engine, start=100, end=-100, max_tokens=4)).finish()
    assert (run.texts["a"], run.reasoning["a"]) == ("", "<think>" * 2)


def test_stop_strings_are_not_looked_for_in_thoughts(engine):
    free = Run(engine).submit("a", ask(engine, thinking=True, end=-100)).finish().reasoning["a"]
    run = Run(engine).submit("a", ask(engine, thinking=True, end=-100, stop=(free[2:4],))).finish()
    assert (run.reasoning["a"], run.reasons["a"]) == (free, "length")


def test_a_grammar_begins_after_the_thoughts(engine):
    run = Run(engine).submit("a", ask(engine, thinking=True, end=100, format=Format(ONE))).finish()
    assert (run.texts["a"], run.reasons["a"]) == ("[1]", "stop")
    run = Run(engine).submit("a", ask(engine, thinking=True, end=-100, format=Format(ONE))).finish()
    assert run.texts["a"] == ""
    assert run.reasoning["a"]


def test_a_model_may_open_its_thoughts_itself_before_a_grammar(engine):
    run = Run(engine).submit("a", ask(engine, start=50, end=100, format=Format(ONE))).finish()
    assert (run.texts["a"], run.reasoning.get("a", ""), run.reasons["a"]) == ("[1]", "", "stop")
    assert run.tokens["a"][:2] == list(engine.marks)


def test_a_grammar_leaves_no_room_for_thoughts_where_they_are_turned_off(engine):
    run = Run(engine).submit("a", ask(engine, thinking=False, start=100, format=Format(ONE))).finish()
    assert (run.texts["a"], run.reasons["a"]) == ("[1]", "stop")


def test_a_raw_prompt_is_answered_as_it_is(engine):
    raw = request("", Sampling(temperature=0, logit_bias={engine.marks[0]: 100.0}), prompt="x <think>", max_tokens=3)
    run = Run(engine).submit("a", raw).finish()
    assert (run.texts["a"], run.reasoning) == ("<think>" * 3, {})


def test_thoughts_end_where_their_budget_does(engine):
    for budget in (0, 3):
        run = Run(engine).submit("a", ask(engine, thinking=True, end=-50, thinking_budget=budget)).finish()
        assert run.tokens["a"].index(engine.marks[1]) == budget
        assert run.texts["a"]


def test_a_budget_bounds_thoughts_that_the_model_opens_itself_and_nothing_else(engine):
    run = Run(engine).submit("a", ask(engine, start=100, end=-50, thinking_budget=2)).finish()
    assert run.tokens["a"][0] == engine.marks[0]
    assert run.tokens["a"].index(engine.marks[1]) == 3
    free = Run(engine).submit("a", ask(engine, start=-100, end=-100)).finish()
    assert Run(engine).submit("a", ask(engine, start=-100, end=-100, thinking_budget=0)).finish().texts == free.texts
