"""Several prompts in one engine: they are read in turns, and none of it changes what is answered."""

import pytest
import tiny_llama
from mlx_helpers import Run, open_engine, reference, request

LONG = "long " * 400
CHUNK = 16


SLIDING = {"sliding_window": 100, "layer_types": ["full_attention", "sliding_attention"]}


@pytest.fixture(scope="module", params=[{}, SLIDING], ids=["plain", "sliding"])
def folder(tmp_path_factory, request):
    """The second model's every second layer sees 100 tokens only."""
    different = {"num_hidden_layers": 2, **request.param}
    return tiny_llama.build(tmp_path_factory.mktemp("tiny"), max_position_embeddings=4096, **different)


@pytest.fixture
def engine(folder):
    engine = open_engine(folder, prefill_chunk=CHUNK, prompt_cache_bytes=0)
    yield engine
    engine.close()


def begun_long(engine):
    """A run whose long prompt is partly read."""
    run = Run(engine).submit("long", request(LONG, max_tokens=6))
    run.step()
    done, total = run.prefill["long"][-1]
    assert 0 < done < total / 4
    return run


def test_a_short_prompt_is_answered_while_a_long_one_is_read(engine, folder):
    run = begun_long(engine)
    run.submit("short", request("hi", max_tokens=6))
    length = len(engine._model.prompts.prepare(request("hi")).tokens)
    for _ in range(-(-length // CHUNK)):
        run.step()
    assert run.counts["short"] >= 1
    assert "long" not in run.counts
    run.finish()
    assert run.texts["short"] == reference(folder, "hi", 6)[1]
    assert run.texts["long"] == reference(folder, LONG, 6)[1]


def test_a_long_prompt_gets_its_turns_under_a_flood_of_short_ones(engine):
    run, number = begun_long(engine), 0
    while "long" not in run.counts:
        waiting = {f"short {n}" for n in range(number)} - run.counts.keys()
        if len(waiting) < 2:
            run.submit(f"short {number}", request(f"{number} " * 20, max_tokens=1))
            number += 1
        run.step()
        assert number < 400
    assert number > 10
    run.finish()


def test_a_partly_read_prompt_can_be_cancelled_while_another_is_read(engine, folder):
    run = begun_long(engine)
    run.submit("other", request("other " * 100, max_tokens=4))
    run.step()
    assert len(engine._model.generator.side_by_side) == 2
    engine.cancel("long")
    run.finish()
    assert run.reasons == {"long": "cancelled", "other": "length"}
    assert run.texts["other"] == reference(folder, "other " * 100, 4)[1]
    assert engine._model.generator.side_by_side == []


def test_prompts_of_all_lengths_in_turns_give_the_tokens_of_each_alone(engine, folder):
    texts = {name: f"{name} " * count for name, count in (("one", 1), ("ten", 10), ("fifty", 50), ("many", 180))}
    run = Run(engine)
    for name, text in texts.items():
        run.submit(name, request(text, max_tokens=8))
        run.step()
    run.finish()
    for name, text in texts.items():
        assert run.tokens[name] == reference(folder, text, 8)[0]


def test_a_burst_of_sixteen_short_prompts_is_read_in_a_few_steps(folder):
    engine = open_engine(folder, prompt_cache_bytes=0)
    run = Run(engine)
    for number in range(16):
        run.submit(f"{number}", request(f"{number} fox", max_tokens=40))
    lengths = [len(engine._model.prompts.prepare(request(f"{number} fox")).tokens) for number in range(16)]
    for _ in range(2 * -(-sum(lengths) // 160) + 4):
        run.step()
    assert len(run.counts) == 16
    run.finish()
    engine.close()


def test_a_row_that_waits_for_a_beginning_lets_others_pass(engine, folder):
    run = Run(engine).submit("reader", request(LONG, max_tokens=4))
    run.step()
    run.submit("waits", request(LONG + "too", max_tokens=4)).submit("passes", request("hi", max_tokens=4))
    for _ in range(8):
        run.step()
    assert "passes" in run.counts
    if not engine._model.reuse.store.needs_states:  # sliding windows can't be cut at any token, so nothing is coming
        assert "waits" not in run.prefill
    run.finish()
    assert run.texts["waits"] == reference(folder, LONG + "too", 4)[1]
