"""The MLX engine on a tiny random Llama: real tokenizer, real batching, no sense."""

import gc
import json
import shutil
import threading
from pathlib import Path

import mlx.core as mx
import mlx_helpers as helpers
import pytest
import tiny_llama
from mlx import nn
from mlx.utils import tree_flatten
from mlx_helpers import Run, answer, open_engine, request, store_of
from mlx_lm.models import gpt_bigcode, mamba
from mlx_lm.models.cache import ChunkedKVCache
from mlx_lm.utils import load_model, save_model

from plimsoll.engine.chat import one_at_a_time
from plimsoll.engine.chat import open_model as opening
from plimsoll.engine.load import loading
from plimsoll.engine.load import weights as blas
from plimsoll.engine.protocol import ChatRequest, Sampling, Usage
from plimsoll.errors import BadRequest, ContextTooLong, InternalError, LoadFailed

QUESTIONS = ["hello", "who are you?", "Съешь ещё булок 🚢", "fox", "the line on her side", "船", "0123", "dog " * 30]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tiny_llama.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def engine(folder):
    engine = open_engine(folder)
    yield engine
    engine.close()


@pytest.fixture
def uncached(folder):
    engine = open_engine(folder, prompt_cache_bytes=0)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def quantized(folder, tmp_path_factory):
    """The same model in 4 bits with float16 scales."""
    path = tmp_path_factory.mktemp("quantized")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, path / name)
    model, config = load_model(folder)
    model.set_dtype(mx.float16)
    nn.quantize(model, group_size=32, bits=4)
    save_model(path, model)
    (path / "config.json").write_text(json.dumps({**config, "quantization": {"group_size": 32, "bits": 4}}))
    return path


# ---- the truth of the tokens


@pytest.mark.parametrize("text", QUESTIONS)
def test_a_greedy_answer_is_mlx_lms_own(folder, engine, text):
    tokens, shown = helpers.reference(folder, text, 24)
    run = Run(engine).submit("a", request(text, max_tokens=24)).finish()
    assert run.tokens["a"] == tokens
    assert run.texts["a"] == shown
    assert run.usage["a"].completion_tokens == len(tokens)


def test_eight_requests_that_join_at_different_steps_get_their_own_answers(folder, engine):
    run = Run(engine)
    for index, text in enumerate(QUESTIONS):
        run.submit(text, request(text, max_tokens=24))
        for _ in range(index):
            run.step()
    run.finish()
    for text in QUESTIONS:
        tokens, shown = helpers.reference(folder, text, 24)
        assert (run.tokens[text], run.texts[text]) == (tokens, shown)


def test_neighbours_that_leave_do_not_change_an_answer(folder, engine):
    tokens, _ = helpers.reference(folder, "hello", 40)
    run = Run(engine).submit("stays", request("hello", max_tokens=40))
    for index, text in enumerate(QUESTIONS[1:6]):
        run.submit(text, request(text, max_tokens=40 if index % 2 else 3 + index))
    for index in range(12):
        run.step()
        engine.cancel(QUESTIONS[1 + index % 5])
    run.finish()
    assert run.tokens["stays"] == tokens


def test_more_requests_than_the_batch_holds_wait_for_their_turn(folder):
    engine = open_engine(folder, max_batch=3)
    run = Run(engine)
    for text in QUESTIONS:
        run.submit(text, request(text, max_tokens=8))
    while engine.busy():
        run.step()
        assert len(engine._live) <= 3
    assert run.reasons == dict.fromkeys(QUESTIONS, "length")
    assert run.tokens["船"] == helpers.reference(folder, "船", 8)[0]


def test_the_engine_steps_on_a_thread_that_did_not_import_it(folder):
    # In a child: MLX aborts an interpreter that ends after a second thread has used it.
    code = (
        "import os, sys, threading\n"
        "import mlx_helpers as helpers\n"
        "def work():\n"
        "    engine = helpers.open_engine(sys.argv[1])\n"
        "    chat = helpers.request('fox', helpers.Sampling(top_p=0.9, top_k=5, min_p=0.1, seed=1), max_tokens=9)\n"
        "    run = helpers.Run(engine).submit('a', chat).finish()\n"
        "    engine.trim(); engine.close()\n"
        "    print(run.counts['a'], flush=True)\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join(); os._exit(0)\n"
    )
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", code, folder],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == "9", done.stderr


# ---- endings


def test_one_token_is_enough(folder, engine):
    run = Run(engine).submit("a", request("hello", max_tokens=1)).finish()
    assert run.tokens["a"] == helpers.reference(folder, "hello", 1)[0]
    assert (run.reasons["a"], run.usage["a"].completion_tokens) == ("length", 1)


def test_a_stop_string_that_spans_tokens_ends_the_answer_before_it(folder, engine):
    _, whole = helpers.reference(folder, "hello", 40)
    stop = whole[15:21]
    assert stop
    run = Run(engine).submit("a", request("hello", max_tokens=40, stop=(stop,))).finish()
    assert run.texts["a"] == whole[: whole.index(stop)]
    assert run.reasons["a"] == "stop"
    assert 0 < run.usage["a"].completion_tokens < 40


def test_a_stop_string_at_the_very_start_leaves_an_empty_answer(folder, engine):
    _, whole = helpers.reference(folder, "hello", 10)
    run = Run(engine).submit("a", request("hello", max_tokens=40, stop=(whole[:2],))).finish()
    assert (run.texts["a"], run.reasons["a"]) == ("", "stop")


def test_half_a_stop_string_at_the_end_is_shown_after_all(folder, engine):
    _, whole = helpers.reference(folder, "hello", 12)
    run = Run(engine).submit("a", request("hello", max_tokens=12, stop=(whole[-3:] + "never",))).finish()
    assert (run.texts["a"], run.reasons["a"]) == (whole, "length")


def test_a_stop_leaves_the_neighbours_alone(folder, engine):
    tokens, _ = helpers.reference(folder, "fox", 30)
    _, whole = helpers.reference(folder, "hello", 10)
    run = Run(engine).submit("stays", request("fox", max_tokens=30))
    run.submit("stops", request("hello", max_tokens=30, stop=(whole[3:5],))).finish()
    assert run.tokens["stays"] == tokens
    assert run.reasons == {"stays": "length", "stops": "stop"}


def test_the_end_of_text_token_is_neither_shown_nor_counted(folder, tmp_path):
    # Make the third token of the greedy answer the end-of-text token.
    tokens, _ = helpers.reference(folder, "hello", 3)
    assert tokens[2] not in tokens[:2]
    shutil.copytree(folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "eos_token_id": tokens[2]}))
    engine = open_engine(tmp_path / "model")
    run = Run(engine).submit("a", request("hello", max_tokens=9)).finish()
    assert run.tokens["a"] == tokens[:2]
    assert (run.reasons["a"], run.usage["a"].completion_tokens) == ("stop", 2)
    assert run.texts["a"] == helpers.reference(tmp_path / "model", "hello", 9)[1]


def test_cancel_in_prefill_ends_the_request_in_the_next_step(folder):
    engine = open_engine(folder, prefill_chunk=16)
    run = Run(engine).submit("a", request("dog " * 60, max_tokens=9))
    run.step()
    done, total = run.prefill["a"][-1]
    assert done < total
    engine.cancel("a")
    run.step()
    assert run.reasons == {"a": "cancelled"}
    assert run.usage["a"] == Usage(total, 0, 0)
    assert not engine.busy()
    assert engine.step()[-1].endings == []


def test_cancel_in_decode_keeps_what_was_read_for_the_next_turn(engine):
    run = Run(engine).submit("a", request("who are you?", max_tokens=50))
    while run.counts.get("a", 0) < 5:
        run.step()
    engine.cancel("a")
    run.finish()
    assert (run.reasons["a"], run.usage["a"].completion_tokens) == ("cancelled", 5)
    again = Run(engine).submit("b", request("who are you?", max_tokens=5)).finish()
    assert again.usage["b"].cached_tokens == again.usage["b"].prompt_tokens - 1


def test_a_waiting_request_can_be_cancelled_and_an_unknown_one_is_ignored(folder):
    engine = open_engine(folder, max_batch=1)
    run = Run(engine).submit("a", request("hello", max_tokens=4)).submit("b", request("fox", max_tokens=4))
    engine.cancel("b")
    engine.cancel("nobody")
    run.finish()
    assert run.reasons == {"a": "length", "b": "cancelled"}


def test_prefill_is_reported_up_to_the_whole_prompt(folder):
    engine = open_engine(folder, prefill_chunk=16)
    run = Run(engine).submit("a", request("dog " * 60, max_tokens=2)).finish()
    done = [progress for progress, _ in run.prefill["a"]]
    assert done == sorted(done)
    assert len(done) > 3
    assert run.prefill["a"][-1] == (run.usage["a"].prompt_tokens,) * 2


def test_one_chunk_of_prompts_is_read_per_step_while_others_stream(folder):
    engine = open_engine(folder, prefill_chunk=16, prompt_cache_bytes=0)
    run = Run(engine).submit("streams", request("hello", max_tokens=200))
    while "streams" not in run.counts:
        run.step()
    for name in "abc":
        run.submit(name, request(f"{name} " * 40, max_tokens=2))
    seen = {}
    while len(run.reasons) < 3:
        run.step()
        now = {name: run.prefill[name][-1][0] for name in "abc" if name in run.prefill}
        assert sum(now.values()) - sum(seen.values()) <= 17  # a prompt's last token is read with the decode
        seen = now
    assert run.counts["streams"] > 10
    run.finish()


def test_prompts_are_read_side_by_side_while_nobody_streams(folder):
    engine = open_engine(folder, prefill_chunk=64)
    run = Run(engine)
    for name in "abcd":
        run.submit(name, request(name, max_tokens=2))
    run.step()
    assert list(run.prefill) == list("abcd")
    run.finish()


# ---- seeds and sampling inside a batch


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1, seed=5),
        Sampling(temperature=1.3, seed=-1, top_p=0.9),
        Sampling(temperature=0.8, seed=2**70, top_k=20, min_p=0.02),
        Sampling(temperature=1, seed=0, presence_penalty=1, frequency_penalty=0.5, repetition_penalty=1.2),
    ],
)
def test_a_seed_gives_the_same_answer_alone_in_a_batch_and_out_of_the_cache(engine, uncached, sampling):
    chat = request("who are you?", sampling, max_tokens=20)
    alone = Run(uncached).submit("a", chat).finish().tokens["a"]
    assert Run(uncached).submit("a", chat).finish().tokens["a"] == alone

    crowd = Run(engine)
    for index, text in enumerate(QUESTIONS):
        crowd.submit(text, request(text, Sampling(temperature=index % 2, seed=index), max_tokens=30))
        crowd.step()
    crowd.submit("a", chat).finish()
    assert crowd.tokens["a"] == alone

    cached = Run(engine).submit("a", chat).finish()
    assert cached.usage["a"].cached_tokens > 0
    assert cached.tokens["a"] == alone


def test_without_a_seed_answers_differ(engine):
    chat = request("hello", Sampling(temperature=1.5), max_tokens=20)
    assert len({answer(engine, chat) for _ in range(4)}) > 1


def test_a_top_k_of_the_whole_vocabulary_or_more_is_no_limit(engine):
    whole = engine.info.vocab_size
    unlimited = answer(engine, request("hello", Sampling(seed=3), max_tokens=12))
    for top_k in (whole, whole + 1, 10**9):
        assert answer(engine, request("hello", Sampling(seed=3, top_k=top_k), max_tokens=12)) == unlimited


@pytest.mark.parametrize("sampling", [Sampling(top_k=1), Sampling(top_p=1e-9), Sampling(min_p=1), Sampling(1e-30)])
def test_filters_that_leave_one_token_are_greedy(folder, engine, sampling):
    tokens, _ = helpers.reference(folder, "hello", 12)
    assert Run(engine).submit("a", request("hello", sampling, max_tokens=12)).finish().tokens["a"] == tokens


def test_a_presence_penalty_reaches_generated_tokens_and_a_repetition_penalty_the_prompt_too(folder, engine):
    # Strong enough to forbid: logits of the tiny model lie within +-40.
    prompt = engine.prepare(request("hello")).tokens
    strong = Sampling(temperature=0, presence_penalty=2, frequency_penalty=2, repetition_penalty=1)
    plain, _ = helpers.reference(folder, "hello", 60)
    tokens = Run(engine).submit("a", request("hello", strong, max_tokens=60)).finish().tokens["a"]
    assert len(set(tokens)) > len(set(plain))
    never = Sampling(temperature=0, repetition_penalty=10)
    tokens = Run(engine).submit("a", request("hello", never, max_tokens=60)).finish().tokens["a"]
    assert len(set(tokens)) == 60
    assert not set(tokens) & set(prompt)


# ---- the prompt cache


def test_the_same_prompt_twice_is_read_once_and_answered_alike(engine):
    first = Run(engine).submit("a", request("fox", max_tokens=20)).finish()
    second = Run(engine).submit("a", request("fox", max_tokens=20)).finish()
    assert first.usage["a"].cached_tokens == 0
    assert second.usage["a"].cached_tokens == second.usage["a"].prompt_tokens - 1
    assert second.tokens == first.tokens


def test_the_next_turn_of_a_chat_reads_only_what_is_new(engine, uncached):
    turns = [{"role": "user", "content": "hello"}]
    said = answer(engine, ChatRequest(turns, helpers.GREEDY, 20))
    turns += [{"role": "assistant", "content": said}, {"role": "user", "content": "fox"}]
    chat = ChatRequest(turns, helpers.GREEDY, 20)
    cached = Run(engine).submit("a", chat).finish()
    assert cached.usage["a"].cached_tokens >= len(engine.prepare(request("hello")).tokens)
    assert cached.prefill["a"][0][0] > cached.usage["a"].cached_tokens
    assert cached.texts["a"] == answer(uncached, chat)


def test_a_prompt_cache_of_no_bytes_keeps_nothing(uncached):
    run = Run(uncached)
    for name in ("a", "b"):
        run.submit(name, request("fox", max_tokens=5)).finish()
    assert run.usage["b"].cached_tokens == 0
    assert len(store_of(uncached)) == 0


def test_the_byte_limit_of_the_prompt_cache_holds_in_mlxs_own_count(folder):
    limit = 256 * 1024
    engine = open_engine(folder, prompt_cache_bytes=limit)
    idle, _ = engine.trim()
    for batch in range(6):
        run = Run(engine)
        for index in range(8):
            run.submit(str(index), request(f"{batch} {index} dog" * 8, max_tokens=24))
        run.finish()
        assert 0 < store_of(engine).nbytes <= limit
        mx.clear_cache()
        # Tokens and random keys take a little too.
        assert mx.get_active_memory() - idle < limit + 16 * 1024


def test_trim_gives_the_prompt_cache_back(engine):
    idle, _ = engine.trim()
    answer(engine, request("dog " * 50, max_tokens=20))
    assert mx.get_active_memory() > idle + 32 * 1024
    active, cached = engine.trim()
    assert cached == 0
    assert active < idle + 4 * 1024


def test_every_pass_over_the_weights_gives_a_token_to_all_that_begin_and_all_that_run(folder, monkeypatch):
    engine = open_engine(folder)
    batch = engine._model.generator.decoding
    passes = []
    real = batch.step
    monkeypatch.setattr(batch, "step", lambda: passes.append(list(batch.uids)) or real())
    run = Run(engine).submit("a", request("fox", max_tokens=6))
    run.step()
    assert (run.counts["a"], len(passes)) == (1, 1)
    run.step()
    assert (run.counts["a"], len(passes)) == (2, 2)
    run.submit("b", request("dog", max_tokens=2))
    run.step()
    assert (run.counts["a"], run.counts["b"], len(passes)) == (3, 1, 3), "nobody waits for a pass of others"
    run.finish()
    assert len(passes) == 6
    assert run.texts["a"] == helpers.reference(folder, "fox", 6)[1]


def test_answers_that_begin_in_every_step_do_not_hold_up_a_running_one(folder):
    engine = open_engine(folder)
    run = Run(engine).submit("long", request("fox", max_tokens=20))
    run.step()
    for number in range(12):
        run.submit(str(number), request(f"{number} dog", max_tokens=1))
        run.step()
    assert run.counts["long"] == 1 + 12
    run.finish()
    assert run.texts["long"] == helpers.reference(folder, "fox", 20)[1]


def test_of_many_that_come_at_once_the_first_begin_early(folder):
    engine = open_engine(folder)
    run = Run(engine)
    for name in "abcdef":
        run.submit(name, request(f"{name} dog" * 30, max_tokens=5))
    tokens = [len(one.prompt.tokens) for one in engine._waiting._line]
    assert 160 < sum(tokens) <= 3 * 160, "two or three steps' reading"
    run.step()
    assert run.counts["a"] == 1
    assert "f" not in run.counts
    run.finish()
    for name in "abcdef":
        assert run.texts[name] == helpers.reference(folder, f"{name} dog" * 30, 5)[1]


def test_an_idle_engine_keeps_conversations_and_gives_back_what_the_allocator_holds(engine):
    answer(engine, request("dog " * 50, max_tokens=20))
    assert mx.get_cache_memory() > 0
    while engine.idle():
        pass
    assert mx.get_cache_memory() == 0
    assert len(store_of(engine)) > 0


def test_close_drops_the_model(folder):
    gc.collect()
    before = mx.get_active_memory()
    engine = open_engine(folder)
    answer(engine, request("hello", max_tokens=3))
    assert mx.get_active_memory() > before + 500_000
    engine.close()
    assert mx.get_active_memory() < before + 4 * 1024
    with pytest.raises(InternalError):
        engine.prepare(request("hello"))


# ---- what a prompt may be


def test_a_prompt_that_fills_the_context_is_refused_with_the_figures(engine):
    with pytest.raises(
        ContextTooLong, match=r"prompt is too long: \d{3,} tokens > 255 maximum. .* maximum context length is 256"
    ) as caught:
        engine.prepare(request("ship " * 400))
    assert caught.value.param == "messages"


def test_max_tokens_is_cut_to_the_room_that_is_left(engine):
    prompt = engine.prepare(request("hello", max_tokens=100_000))
    assert len(prompt.tokens) + prompt.max_tokens == 256
    assert engine.prepare(request("hello")).max_tokens == prompt.max_tokens


def test_an_answer_to_the_end_of_the_context_ends_there(engine):
    run = Run(engine).submit("a", request("ship " * 30)).finish()
    usage = run.usage["a"]
    assert run.reasons["a"] == "length"
    assert usage.prompt_tokens + usage.completion_tokens == 256


def test_the_configured_context_is_capped_to_the_models(folder):
    assert open_engine(folder, context=64).info.context == 64
    assert open_engine(folder, context=9999).info.context == 256


def test_text_parts_are_joined(engine):
    parts = [{"type": "text", "text": "who are "}, {"type": "text", "text": "you?"}]
    chat = ChatRequest([{"role": "user", "content": parts}])
    assert engine.prepare(chat).tokens == engine.prepare(request("who are you?")).tokens


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "reads text only"),
        ([{"role": "user", "content": ["bare"]}], "part of type str"),
        ([{"role": "user", "content": [{"type": "text"}]}], "has no text"),
        ([{"role": "user", "content": 7}], "content is a int"),
        ([{"content": "hello"}], "needs a role"),
        ([{"role": "pirate", "content": "hello"}], "refuses these messages: no role pirate"),
        ([], "messages is empty"),
    ],
)
def test_messages_that_the_model_cannot_read_are_refused_with_the_reason(engine, messages, reason):
    with pytest.raises(BadRequest, match=reason) as caught:
        engine.prepare(ChatRequest(messages))
    assert caught.value.param == "messages"


def test_a_model_without_a_template_gets_a_plain_prompt(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(config))
    engine = open_engine(tmp_path / "model")
    tokenizer = engine._model.loaded.tokenizer
    assert tokenizer.decode(engine.prepare(request("hello")).tokens) == "user: hello\nassistant:"


def test_prompts_are_tokenised_beside_a_running_batch(engine):
    run = Run(engine)
    for text in QUESTIONS:
        run.submit(text, request(text, max_tokens=60))
    expected = engine.prepare(request("ship " * 40)).tokens
    failures = []

    def tokenise():
        for _ in range(200):
            try:
                if engine.prepare(request("ship " * 40)).tokens != expected:
                    failures.append("other tokens")
            except RuntimeError as error:  # the tokenizer's "Already borrowed"
                failures.append(error)

    thread = threading.Thread(target=tokenise)
    thread.start()
    run.finish()
    thread.join()
    assert failures == []


# ---- loading


def test_the_cpu_computes_in_float32(engine, folder):
    assert engine.info.device == "cpu"
    assert engine.info.dtype == "float32"
    assert engine.info.blas in ("reference", "openblas", "mkl", blas.blas_in_use())
    assert engine.info.working_set_bytes == 0
    assert engine.info.weights_bytes == pytest.approx((folder / "model.safetensors").stat().st_size, rel=0.01)


@pytest.mark.parametrize(("dequantize", "dtype"), [(True, "float32"), (False, "4-bit, float32")])
def test_packed_weights_become_dense_where_it_is_wanted(quantized, dequantize, dtype):
    engine = open_engine(quantized, dequantize=dequantize)
    assert engine.info.dtype == dtype
    assert answer(engine, request("hello", max_tokens=8)) == helpers.reference(quantized, "hello", 8)[1]
    assert (engine.info.weights_bytes > 500_000) == (dtype == "float32")


def test_reading_is_reported_from_nothing_to_the_whole(folder):
    seen = []
    engine = helpers.MlxEngine(helpers.EngineOptions(cache_dir=""))
    engine.load(folder, lambda *progress: seen.append(progress))
    total = (folder / "model.safetensors").stat().st_size
    done = [entry[1] for entry in seen]
    assert {entry[0] for entry in seen} == {"read"}
    assert {entry[2] for entry in seen} == {total}
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, total)
    assert len(done) > 5


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "token*"])
def test_a_folder_that_lacks_a_file_is_named(folder, tmp_path, missing):
    shutil.copytree(folder, tmp_path / "model")
    for file in (tmp_path / "model").glob(missing):
        file.unlink()
    with pytest.raises(LoadFailed, match="fetch or convert the model again"):
        open_engine(tmp_path / "model")


def test_a_model_whose_caches_cannot_be_batched_answers_one_request_after_another(folder, monkeypatch):
    class Chunks(ChunkedKVCache):
        def __init__(self):
            super().__init__(10_000)

    assert not hasattr(Chunks, "merge")
    texts = ("hello", "dog " * 30, "fox")
    batched = open_engine(folder)
    wanted = [answer(batched, request(text, max_tokens=12)) for text in texts]
    for module in (loading, opening, one_at_a_time):
        monkeypatch.setattr(module, "make_prompt_cache", lambda model, *_: [Chunks() for _ in model.layers])
    engine = open_engine(folder)
    run = Run(engine)
    for text in texts:
        run.submit(text, request(text, max_tokens=12))
    at_once = 0
    while engine.busy():
        run.step()
        at_once = max(at_once, len(engine._live))
    assert [run.texts[text] for text in texts] == wanted
    assert at_once == 1
    again = Run(engine).submit("again", request(texts[1], max_tokens=12)).finish()
    assert again.texts["again"] == wanted[1]
    assert again.usage["again"].cached_tokens == again.usage["again"].prompt_tokens - 1


def test_a_model_whose_code_takes_one_row_only_answers_one_request_after_another(tmp_path):
    folder = tiny_llama.build(tmp_path / "tiny")
    own = json.loads((folder / "config.json").read_text())
    config = {
        "model_type": "gpt_bigcode",
        "vocab_size": own["vocab_size"],
        "eos_token_id": own["eos_token_id"],
        "n_embd": 32,
        "n_layer": 2,
        "n_inner": 64,
        "n_head": 4,
        "n_positions": 512,
        "layer_norm_epsilon": 1e-5,
    }
    (folder / "config.json").write_text(json.dumps(config))
    mx.random.seed(3)
    model = gpt_bigcode.Model(gpt_bigcode.ModelArgs.from_dict(config))
    wide = {name: array + 0.3 * mx.random.normal(array.shape) for name, array in tree_flatten(model.parameters())}
    mx.save_safetensors(str(folder / "model.safetensors"), wide, metadata={"format": "mlx"})
    engine = open_engine(folder)
    run = Run(engine)
    for text in ("hello", "dog " * 30):
        run.submit(text, request(text, max_tokens=4))
    run.finish()
    assert run.refused == {}
    for text in ("hello", "dog " * 30):
        assert run.tokens[text] == helpers.reference(folder, text, 4)[0]


def test_padding_does_not_get_into_recurrent_states(tmp_path):
    folder = tiny_llama.build(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    config = {
        "model_type": "mamba",
        "vocab_size": config["vocab_size"],
        "hidden_size": 32,
        "intermediate_size": 64,
        "state_size": 4,
        "num_hidden_layers": 2,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_rank": 4,
        "eos_token_id": config["eos_token_id"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    mx.random.seed(3)
    model = mamba.Model(mamba.ModelArgs.from_dict(config))
    wide = {name: array + 0.3 * mx.random.normal(array.shape) for name, array in tree_flatten(model.parameters())}
    mx.save_safetensors(str(folder / "model.safetensors"), wide, metadata={"format": "mlx"})
    texts = ("fox", "dog " * 9, "hello there", "the line on her side " * 9)
    single = open_engine(folder, prompt_cache_bytes=0)
    wanted = [answer(single, request(text, max_tokens=8)) for text in texts]
    engine = open_engine(folder)
    run = Run(engine)
    for text in texts:
        run.submit(text, request(text, max_tokens=8))
    run.finish()
    assert [run.texts[text] for text in texts] == wanted
    for text, said in zip(texts, wanted, strict=True):
        again = Run(engine).submit("again", request(text, max_tokens=8)).finish()
        assert again.texts["again"] == said
        assert again.usage["again"].cached_tokens == again.usage["again"].prompt_tokens - 1


# ---- prompts that begin alike

SYSTEM = "You are a careful assistant who answers in one short sentence. " * 4


def asked(text, **rest):
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    return ChatRequest(messages, helpers.GREEDY, **rest)


def alone(folder, chat):
    engine = open_engine(folder, prompt_cache_bytes=0)
    run = Run(engine).submit("alone", chat).finish()
    engine.close()
    return run.texts["alone"]


def test_a_beginning_that_several_prompts_share_is_read_once(folder):
    engine = open_engine(folder, prompt_cache_bytes=0)
    run = Run(engine)
    for name in "abcd":
        run.submit(name, asked(f"{name}?", max_tokens=12))
    run.finish()
    engine.close()
    shared = len(engine_tokens(folder, SYSTEM))
    assert run.usage["a"].cached_tokens == 0
    assert all(run.usage[name].cached_tokens >= shared for name in "bcd")
    assert all(run.texts[name] == alone(folder, asked(f"{name}?", max_tokens=12)) for name in "abcd")


def test_the_beginning_of_a_running_answer_serves_who_comes_later(folder):
    engine = open_engine(folder, prompt_cache_bytes=0)
    run = Run(engine).submit("first", asked("one?", max_tokens=60))
    while run.counts.get("first", 0) < 20:
        run.step()
    run.submit("second", asked("two?", max_tokens=12)).finish()
    engine.close()
    assert run.usage["second"].cached_tokens >= len(engine_tokens(folder, SYSTEM))
    assert run.texts["second"] == alone(folder, asked("two?", max_tokens=12))
    assert run.texts["first"] == alone(folder, asked("one?", max_tokens=60))


def test_who_waits_for_a_shared_beginning_goes_on_when_its_reader_is_cancelled(folder):
    engine = open_engine(folder, prompt_cache_bytes=0, prefill_chunk=16)
    run = Run(engine).submit("reader", asked("one?", max_tokens=5)).submit("waits", asked("two?", max_tokens=5))
    run.step()
    assert "waits" not in run.prefill
    engine.cancel("reader")
    run.finish()
    assert run.reasons == {"reader": "cancelled", "waits": "length"}
    assert run.texts["waits"] == alone(folder, asked("two?", max_tokens=5))


def engine_tokens(folder, text):
    engine = open_engine(folder)
    tokens = engine._model.loaded.tokenizer.encode(text)
    engine.close()
    return tokens
