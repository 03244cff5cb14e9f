"""Answers under a grammar: whatever the model wants to say, what ends by itself is valid."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import jsonschema
import mlx.core as mx
import numpy as np
import pytest
import schemas
import tiny_llama
from mlx_helpers import Run, open_engine, prepare, request

from plimsoll import config
from plimsoll.catalog.fetch import resolve
from plimsoll.catalog.installed import default_cache_dir
from plimsoll.catalog.source import BUILTIN
from plimsoll.engine.chat import grammar
from plimsoll.engine.handle.environment import worker_environment
from plimsoll.engine.protocol import Format, Sampling, Tool
from plimsoll.errors import BadRequest, LoadFailed

HOT = Sampling(temperature=1, seed=3)
SHIP = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["brig", "sloop", None]},
        "holds": {
            "type": "array",
            "maxItems": 2,
            "items": {"type": "object", "properties": {"t": {"type": "integer", "minimum": 0, "maximum": 99}},
                      "required": ["t"], "additionalProperties": False},
        },
        "flag": {"$ref": "#/$defs/flag"},
    },
    "$defs": {"flag": {"type": ["boolean", "null"]}},
    "required": ["name", "kind", "holds", "flag"],
    "additionalProperties": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    engine = open_engine(tiny_llama.build(tmp_path_factory.mktemp("tiny"), max_position_embeddings=1024), max_batch=8)
    yield engine
    engine.close()


def ask(schema, sampling=HOT, max_tokens=200, **rest):
    return request("a ship", sampling, format=Format(schema), max_tokens=max_tokens, **rest)


def check(run, name, schema):
    """Whether the answer ended by itself; if so it must be valid."""
    if run.reasons[name] != "stop":
        assert run.reasons[name] == "length"
        return False
    jsonschema.validate(json.loads(run.texts[name]), schema)
    return True


def test_every_answer_of_a_random_model_at_temperature_1_is_valid(engine):
    chosen = [*schemas.sample(23), SHIP]
    run = Run(engine)
    for index, schema in enumerate(chosen):
        run.submit(str(index), ask(schema, Sampling(temperature=1, seed=index)))
    run.finish()
    ended = [check(run, str(index), schema) for index, schema in enumerate(chosen)]
    assert sum(ended) > len(ended) * 0.7


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False},
        {"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 2, "maxItems": 3},
        {"const": {"a": [1, None, "ж🚢"]}},
        {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
    ],
)
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0),
        Sampling(temperature=2, seed=1),
        Sampling(top_p=0.1, top_k=3, min_p=0.2, seed=2),
        Sampling(temperature=0, frequency_penalty=2, presence_penalty=2, repetition_penalty=1.5),
        Sampling(temperature=0, logit_bias={5: 100.0, 77: -100.0}),
    ],
)
def test_no_sampling_and_no_penalty_breaks_out_of_a_grammar(engine, schema, sampling):
    run = Run(engine).submit("a", ask(schema, sampling, max_tokens=40)).finish()
    check(run, "a", schema)
    assert not run.refused


def test_neighbours_without_a_grammar_say_what_they_say_alone(engine):
    alone = Run(engine).submit("a", request("fox", max_tokens=30)).finish().tokens["a"]
    run = Run(engine).submit("json", ask(SHIP, max_tokens=20))
    run.step()
    run.submit("a", request("fox", max_tokens=30)).submit("late", ask(SHIP, max_tokens=20))
    assert run.finish().tokens["a"] == alone


def test_a_grammar_is_followed_while_others_join_and_leave(engine):
    run = Run(engine)
    names = [str(index) for index in range(6)]
    for index, name in enumerate(names):
        run.submit(name, ask(SHIP, Sampling(temperature=1, seed=index)))
        run.submit(f"plain{name}", request(f"fox {name}", max_tokens=2 + index))
        for _ in range(index):
            run.step()
    engine.cancel("2")
    run.finish()
    assert run.reasons.pop("2") == "cancelled"
    ended = [check(run, name, SHIP) for name in names if name != "2"]
    assert any(ended)


def test_json_object_mode_gives_an_object(engine):
    run = Run(engine)
    for seed in range(4):
        run.submit(str(seed), ask(None, Sampling(temperature=1, seed=seed), max_tokens=120))
    run.finish()
    for seed in range(4):
        assert run.texts[str(seed)].startswith("{")
        check(run, str(seed), {"type": "object"})


def test_an_empty_schema_allows_any_json(engine):
    run = Run(engine)
    for seed in range(8):
        run.submit(str(seed), ask({}, Sampling(temperature=2, seed=seed), max_tokens=40))
    run.finish()
    assert any(not text.startswith("{") for text in run.texts.values())
    for seed in range(8):
        check(run, str(seed), {})


def test_an_answer_cut_short_says_length(engine):
    run = Run(engine).submit("a", ask(SHIP, max_tokens=3)).finish()
    assert run.reasons["a"] == "length"


def test_white_space_is_at_most_one_space_after_a_comma_or_a_colon(engine):
    # Newlines and spaces are made as likely as can be.
    tokenizer = engine._model.loaded.tokenizer
    white = [token for text, token in tokenizer.get_vocab().items() if not tokenizer.decode([token]).strip()]
    bias = dict.fromkeys((token for token in white if token not in tokenizer.eos_token_ids), 50.0)
    schema = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 3, "maxItems": 3}
    run = Run(engine).submit("a", ask(schema, Sampling(temperature=0, logit_bias=bias))).finish()
    assert run.reasons["a"] == "stop"
    assert len(run.texts["a"]) <= len("[1, 2, 3]")


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "strin"}, "strin"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"$ref": "#/$defs/nowhere"}, "nowhere"),
        ({"$ref": "https://example.org/schema.json"}, "example.org"),
        ({"enum": []}, "nsatisfiable"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
        ({"description": "x" * grammar.MAX_SCHEMA_BYTES}, "bytes"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_with_the_reason(engine, schema, reason):
    with pytest.raises(BadRequest, match=reason) as caught:
        prepare(engine, ask(schema))
    assert caught.value.param == "response_format"


def test_a_schema_too_deep_is_refused_without_recursion(engine):
    schema = {}
    for _ in range(50_000):
        schema = {"not": schema}
    with pytest.raises(BadRequest, match=f"at most {grammar.MAX_SCHEMA_DEPTH}"):
        prepare(engine, ask(schema))
    for _ in range(50_000):
        schema = schema["not"]  # taken apart slowly: freeing it at once would recurse


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "(a{1,1000}){1,1000}"},
        {"type": "string", "pattern": "^(a|b|ab)*c(a|b|ab)*d(a|b|ab){500}$"},
        {"type": "array", "items": {"type": "string"}, "minItems": 100_000, "maxItems": 200_000},
        {"$defs": {"x": {"anyOf": [{"$ref": "#/$defs/x"}, {"$ref": "#/$defs/x"}]}}, "$ref": "#/$defs/x"},
        {"enum": [f"value {number}" for number in range(3000)]},
    ],
)
@pytest.mark.timeout(120)
def test_a_schema_made_to_cost_time_is_refused_or_served_in_bounded_time(engine, schema):
    try:
        prepared = prepare(engine, ask(schema, max_tokens=20))
    except BadRequest:
        return
    engine.submit("a", prepared)
    run = Run(engine).finish()
    assert run.reasons or run.refused


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 999_983},
        {"allOf": [{"type": "integer", "multipleOf": 9973}, {"type": "integer", "multipleOf": 9967}]},
    ],
    ids=["one", "two"],
)
def test_a_schema_that_takes_hours_or_gigabytes_costs_a_child_process_two_seconds(engine, schema):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with pytest.raises(BadRequest, match="takes more than 2 s or 1 GiB") as caught:
        prepare(engine, ask(schema))
    assert caught.value.param == "response_format"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 4
    assert after.ru_maxrss < 1_200_000 or after.ru_maxrss == before.ru_maxrss  # of the largest child so far
    # Several answers to one request ask for the same again.
    with pytest.raises(BadRequest, match="takes more than 2 s"):
        prepare(engine, ask(schema))
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime == after.ru_utime


def test_a_schema_in_a_tool_is_tried_like_one_of_an_answer(engine):
    tool = Tool("f", "", {"properties": {"x": {"type": "integer", "multipleOf": 999_979}}, "required": ["x"]})
    with pytest.raises(BadRequest, match="takes more than 2 s") as caught:
        prepare(engine, request("a ship", HOT, tools=(tool,), tool_choice="required"))
    assert caught.value.param == "tools"


def test_a_client_cannot_loosen_the_spacing(engine):
    schema = {"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2,
              "x-guidance": {"whitespace_flexible": True, "item_separator": "!"}}  # fmt: skip
    run = Run(engine).submit("a", ask(schema)).finish()
    assert run.texts["a"] in ("[1,1]", "[1, 1]")


def test_the_same_schema_is_compiled_once_and_its_answers_do_not_share_a_state(engine):
    first, second = prepare(engine, ask(SHIP)), prepare(engine, ask(SHIP))
    assert first.constraint is not second.constraint
    engine.submit("a", first)
    run = Run(engine)
    for _ in range(8):
        run.step()
    engine.submit("b", second)
    run.finish()
    assert run.texts["b"].startswith('{"name"')


def test_a_matcher_that_gives_up_ends_its_request_with_an_error_and_nobody_elses(engine):
    run = Run(engine).submit("plain", request("fox", max_tokens=25))
    prepared = prepare(engine, ask(SHIP))
    engine.submit("broken", prepared)
    for _ in range(6):
        run.step()
    prepared.constraint._matcher.consume_token(0)
    assert prepared.constraint._matcher.is_error()
    run.finish()
    assert run.refused["broken"].code == "internal_error"
    assert run.reasons == {"plain": "length"}


def test_a_mask_fits_logits_that_are_wider_or_narrower_than_the_vocabulary(engine):
    for width in (400, 600, 5000):
        constraint = prepare(engine, ask(SHIP)).constraint
        masked = constraint(mx.array([1]), mx.zeros((1, width)))
        assert masked.shape == (1, width)
        assert np.isfinite(np.array(masked)).any()


def test_with_tools_the_answer_is_json_or_a_call(engine):
    tool = Tool(
        "sail", "", {"properties": {"to": {"enum": ["Oslo"]}}, "required": ["to"], "additionalProperties": False}
    )
    run = Run(engine)
    for seed in range(8):
        sampling = Sampling(temperature=2, seed=seed)
        run.submit(str(seed), ask({"const": [1]}, sampling, tools=(tool,), parallel_tool_calls=False, max_tokens=90))
    run.finish()
    for name, reason in run.reasons.items():
        if reason == "stop":
            assert run.texts[name] == "[1]"
        elif reason == "tool_calls":
            assert [(called, json.loads(given)) for called, given in run.calls[name]] == [("sail", {"to": "Oslo"})]
    assert {"stop", "tool_calls"} & set(run.reasons.values())


def test_every_answer_of_the_built_in_model_is_valid():
    try:
        resolve(BUILTIN, cache_dir=default_cache_dir(config.load()), offline=False, progress=lambda *_: None)
    except LoadFailed as error:
        pytest.skip(f"the built-in model is not to be had here: {error}")
    script = Path(__file__).parents[2] / "ops/bench/grammar.py"
    # As a script, for the fast BLAS can only be preloaded into a new process.
    done = subprocess.run(
        [sys.executable, script, "--rounds", "0", "--schemas", "8", "--max-tokens", "40"],
        env={**os.environ, **worker_environment("auto")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["invalid"], result["refused"]) == ([], 0)
    assert result["endings"]["stop"] >= 4


# ---- which schemas are tried in a child process first


class Counted:
    """A trial that counts what it is asked to try."""

    def __init__(self):
        self.tried = 0

    def affordable(self, _grammar, _cpu_s):
        self.tried += 1
        return False


PLAIN = {
    "type": "object",
    "properties": {"pattern": {"type": ["string", "null"], "description": "a name like a word of schemas"}, "n": {}},
    "required": ["pattern"],
    "additionalProperties": {"anyOf": [{"enum": [1, "two"]}, {"type": "array", "items": {"type": "object"}}]},
}
COSTLY = (
    {"type": "string", "pattern": "a+b"},
    {"type": "object", "properties": {"n": {"type": "integer", "multipleOf": 999983}}},
    {"type": "object", "additionalProperties": {"type": "array", "items": {"$ref": "#"}}},
    {"anyOf": [{"type": "string"}, {"allOf": [{"type": "object"}]}]},
    {"enum": [f"{number:08}" for number in range(2000)]},
)


def tries(engine, schema):
    trial, grammars = Counted(), engine._model.prompts._grammars
    made = grammars.compile(grammars.answer(schema, (), parallel=True), trial, 1.0)
    assert (made is None) == (trial.tried == 1)
    return trial.tried


def test_a_plain_schema_is_compiled_without_a_trial(engine):
    assert tries(engine, PLAIN) == 0
    assert tries(engine, None) == 0


@pytest.mark.parametrize("schema", COSTLY, ids=lambda schema: str(schema)[:40])
def test_a_schema_that_might_be_costly_is_tried_first(engine, schema):
    assert tries(engine, schema) == 1
