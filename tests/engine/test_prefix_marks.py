"""Where snapshots are taken: models that can't begin at any token find them where other prompts will part."""

import json
from pathlib import Path

import mlx_helpers as helpers
import pytest
import tiny_llama

from plimsoll.engine.chat.prefix_store.snapshot_marks import Marks, periodic
from plimsoll.engine.protocol import ChatRequest, EngineOptions
from plimsoll.errors import BadRequest

SYSTEM = "You are a careful assistant who answers in one short sentence. " * 12
LONG = "the line on her side shows how deep she may lie in the water " * 20
# Thoughts of earlier turns are not told again, and the prompt ends in the middle of new ones.
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
WINDOWS = {"sliding_window": 64, "layer_types": ["full_attention", "sliding_attention"]}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tiny_llama.build(tmp_path_factory.mktemp("tiny"), max_position_embeddings=4096, **WINDOWS)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "chat_template": THINKS}))
    for template in folder.glob("chat_template*"):
        template.unlink()
    return folder


@pytest.fixture
def opened(folder, tmp_path):
    engines = []

    def open_():
        engine = helpers.MlxEngine(EngineOptions(cache_dir=str(tmp_path), disk_cache_bytes=1 << 30))
        engine.load(Path(folder), lambda *_: None)
        engines.append(engine)
        return engine

    yield open_
    for engine in engines:
        engine.close()


def ask(engine, *texts):
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 3, texts, strict=False)]
    messages = [{"role": "system", "content": SYSTEM}, *turns]
    run = helpers.Run(engine).submit("a", ChatRequest(messages, helpers.GREEDY, max_tokens=6)).finish()
    return run.usage["a"]


@pytest.mark.parametrize("unloaded", [False, True])
def test_a_turn_reuses_the_one_before_whose_thoughts_were_dropped(opened, unloaded):
    engine = opened()
    first = ask(engine, LONG)
    if unloaded:
        engine.close()
        engine = opened()
    second = ask(engine, LONG, "said without thoughts", "and then?")
    assert second.cached_tokens >= 0.95 * first.prompt_tokens
    assert second.cached_from == ("disk" if unloaded else "memory")


def test_another_conversation_reuses_the_system_part(opened):
    engine = opened()
    ask(engine, LONG)
    system = len(engine.prepare(ChatRequest([{"role": "system", "content": SYSTEM}])).tokens)
    other = ask(engine, "fox")
    assert 0.9 * system <= other.cached_tokens <= system + 5


def test_the_third_prompt_reuses_what_the_first_two_had_in_common(opened):
    engine = opened()
    common = LONG + "to this word: "
    ask(engine, common + "ship " * 90)
    second = ask(engine, common + "dog " * 90)
    third = ask(engine, common + "fox " * 90)
    assert third.cached_tokens > second.cached_tokens
    assert third.cached_tokens >= second.left_at - 1


def test_the_same_prompt_again_is_hardly_read(opened):
    engine = opened()
    first = ask(engine, LONG)
    assert ask(engine, LONG).cached_tokens >= 0.95 * first.prompt_tokens


def test_a_template_is_looked_at_once_for_each_system_part():
    rendered = []

    def render(request):
        rendered.append(request)
        texts = [f"<{message['role']}>{message['content']}" for message in request.messages]
        return [ord(letter) for letter in "".join(texts) + "<assistant>"]

    marks = Marks(render)
    requests = [
        ChatRequest([{"role": "system", "content": "s" * 50}, {"role": "user", "content": text}]) for text in ("x", "y")
    ]
    for request in requests:
        tokens = render(request)
        rendered.clear()
        assert marks.of(request, tokens) == (len("<system><user>") + 50, len(tokens) - 1)
    assert not rendered


def test_a_template_that_refuses_costs_the_marks_and_nothing_else():
    def render(_):
        raise BadRequest("no")

    request = ChatRequest([{"role": "user", "content": "x"}])
    assert Marks(render).of(request, list(range(100))) == (99,)


def test_long_prompts_have_few_snapshots_at_places_that_all_share():
    assert periodic(2047) == set()
    assert periodic(5000) == {2048, 4096}
    assert len(periodic(100_000)) <= 8
    assert periodic(100_000) <= periodic(120_000)
