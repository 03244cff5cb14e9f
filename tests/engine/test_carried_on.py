"""An answer that another worker has begun goes on as if nothing had happened, wherever it was cut."""

import json

import mlx.core as mx
import pytest
import tiny_llama
from mlx.utils import tree_flatten
from mlx_helpers import open_engine, request
from mlx_lm.models import mamba
from tokenizers import AddedToken, Tokenizer

from plimsoll.engine.engine import Unfinished
from plimsoll.engine.protocol import Format, Sampling, Step, Tool

TEMPLATE = (
    "{% if tools %}TOOLS {{ tools | tojson }} <tool_call>{% endif %}"
    "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}[assistant]"
    "{% if enable_thinking is defined and enable_thinking %}<think>\n"
    "{% elif enable_thinking is defined %}<think>\n\n</think>\n\n{% endif %}"
)
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["one", "two"]}, "n": {"maxItems": 3, "items": {"enum": [1]}}}}
CALL = Tool("look", "", {"type": "object", "properties": {"at": {"enum": ["sea", "ship"]}}, "required": ["at"]})
TOKENS = 24
LIVELY = Sampling(temperature=1.3, top_p=0.95, seed=11)

REQUESTS = {
    "greedy": {"sampling": Sampling(temperature=0)},
    "seeded": {"sampling": LIVELY},
    "log-probabilities": {"sampling": LIVELY, "logprobs": 2},
    "penalties": {
        "sampling": Sampling(
            temperature=0.8, seed=3, presence_penalty=1.5, frequency_penalty=0.5, repetition_penalty=1.3
        )
    },
    "schema": {"sampling": LIVELY, "format": Format(SCHEMA)},
    "forced call": {"sampling": LIVELY, "tools": (CALL,), "tool_choice": "look", "max_tokens": 60},
    "thoughts": {"sampling": LIVELY, "thinking": True, "thinking_budget": 7},
    "thoughts and schema": {
        "sampling": LIVELY,
        "thinking": True,
        "thinking_budget": 5,
        "format": Format(SCHEMA),
        "max_tokens": 40,
    },
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("thinking")
    tiny_llama.build(folder, vocab_size=610, max_position_embeddings=1024)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    marks = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in marks])
    tokenizer.save(str(folder / "tokenizer.json"))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TEMPLATE}))
    engine = open_engine(folder)
    yield engine
    engine.close()


def submit(engine, name, chat, so_far=()):
    made = engine.prepare(chat, so_far)
    if isinstance(made, Unfinished):
        made.work(last=False) or made.work(last=True)
        made = made.prepared()
    engine.submit(name, made)


def steps(engine):
    found = []
    while engine.busy():
        found += [event for event in engine.step() if isinstance(event, Step) and event.texts + event.endings]
    return found


def said(found, name="a"):
    """All that a client has of one answer."""
    return (
        "".join(text for step in found for one, text, _ in step.texts if one == name),
        "".join(text for step in found for one, text, _ in step.reasoning if one == name),
        [call.name for step in found for call in step.calls if call.request_id == name and call.name],
        "".join(call.arguments for step in found for call in step.calls if call.request_id == name),
        [(one.text, round(one.logprob, 3)) for step in found for to, new in step.logprobs if to == name for one in new],
        [token for step in found for to, token in step.tokens if to == name],
        [
            (reason, usage.prompt_tokens, usage.completion_tokens)
            for step in found
            for to, reason, usage in step.endings
        ],
        [stop for step in found for to, stop in step.stops if to == name],
    )


def carried_on(engine, chat, whole):
    """What comes of the answer when it is cut behind some of its steps, and another worker goes on."""
    for cut in sorted({1, 2, len(whole) // 3, len(whole) // 2, len(whole) - 1}):
        so_far = [token for step in whole[:cut] for _, token in step.tokens]
        engine.trim()
        submit(engine, "a", chat, so_far)
        yield cut, [*whole[:cut], *steps(engine)]


@pytest.mark.parametrize("kind", REQUESTS)
def test_an_answer_that_was_cut_anywhere_is_the_whole_one(engine, kind):
    chat = request("hello", **{"max_tokens": TOKENS, **REQUESTS[kind]})
    submit(engine, "a", chat)
    whole = steps(engine)
    assert len(said(whole)[5]) > 4
    for cut, again in carried_on(engine, chat, whole):
        assert said(again) == said(whole), f"cut behind step {cut}"


def test_a_stop_string_that_was_half_said_is_found(engine):
    plain = request("hello", LIVELY, max_tokens=TOKENS)
    submit(engine, "a", plain)
    text = said(steps(engine))[0]
    chat = request("hello", LIVELY, max_tokens=TOKENS, stop=(text[20:31],))
    submit(engine, "a", chat)
    whole = steps(engine)
    assert said(whole)[7] == [text[20:31]]
    for cut, again in carried_on(engine, chat, whole):
        assert said(again) == said(whole), f"cut behind step {cut}"


def test_answers_that_go_on_side_by_side_are_what_they_are_alone(engine):
    chats = {
        name: request("hello", **{"max_tokens": TOKENS, **REQUESTS[name]}) for name in ("greedy", "seeded", "schema")
    }
    whole = {}
    for name, chat in chats.items():
        submit(engine, name, chat)
        whole[name] = steps(engine)
    for name, chat in chats.items():
        submit(engine, name, chat, [token for step in whole[name][:5] for _, token in step.tokens])
    together = steps(engine)
    for name, found in whole.items():
        assert [*said(found[:5], name)[5], *said(together, name)[5]] == said(found, name)[5]


def test_what_was_sent_counts_against_max_tokens_and_the_usage_is_that_of_the_whole(engine):
    chat = request("hello", LIVELY, max_tokens=6)
    submit(engine, "a", chat)
    whole = steps(engine)
    tokens = said(whole)[5]
    submit(engine, "a", chat, tokens)  # its ending was lost
    (last,) = steps(engine)
    assert (last.tokens, last.texts) == ([], [])
    ((_, reason, usage),) = last.endings
    assert (reason, usage.completion_tokens) == ("length", 6)
    assert usage.cached_tokens <= usage.prompt_tokens


def test_a_recurrent_model_goes_on_too(tmp_path):
    vocab_size, eos = tiny_llama.write_tokenizer(tmp_path)
    config = {
        "model_type": "mamba", "vocab_size": vocab_size, "hidden_size": 32, "intermediate_size": 64, "state_size": 8,
        "num_hidden_layers": 2, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True, "time_step_rank": 4,
        "eos_token_id": eos, "max_position_embeddings": 512,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    mx.random.seed(3)
    model = mamba.Model(mamba.ModelArgs.from_dict(config))
    weights = {name: mx.random.normal(array.shape) * 0.3 for name, array in tree_flatten(model.parameters())}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights, metadata={"format": "mlx"})
    engine = open_engine(tmp_path)
    chat = request("hello", LIVELY, max_tokens=12)
    submit(engine, "a", chat)
    whole = steps(engine)
    for cut, again in carried_on(engine, chat, whole):
        assert said(again) == said(whole), f"cut behind step {cut}"
    engine.close()
