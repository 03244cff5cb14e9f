"""The log-probabilities of a prompt's own tokens: the model's own, whatever else runs, was kept or got lost."""

import json

import mlx.core as mx
import mlx_helpers as helpers
import pytest
import tiny_llama
from mlx import nn
from mlx.utils import tree_flatten
from mlx_helpers import Run, open_engine
from mlx_lm.models import gpt_bigcode, mamba
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from plimsoll.engine.chat import prompt_scores
from plimsoll.engine.chat.prompt_scores import PromptScores, scoring_bytes
from plimsoll.engine.chat.sampling import TokenLogprobs
from plimsoll.engine.protocol import ChatRequest, RequestError, Sampling, Step

GREEDY = Sampling(temperature=0)
SHIP = "The quick brown fox jumps over the lazy dog. A ship lies deep in the water 🌊 水线. " * 4
FOX = "user: hello, who are you? assistant: " * 6
SLIDING = {"sliding_window": 60, "layer_types": ["full_attention", "sliding_attention"]}


@pytest.fixture(scope="module", params=[{}, SLIDING], ids=["plain", "sliding"])
def folder(tmp_path_factory, request):
    return tiny_llama.build(tmp_path_factory.mktemp("tiny"), max_position_embeddings=4096, **request.param)


@pytest.fixture
def engine(folder):
    engine = open_engine(folder, prefill_chunk=16)
    yield engine
    engine.close()


def scored(prompt, max_tokens=0, top=3):
    return ChatRequest([], GREEDY, max_tokens, prompt=prompt, logprobs=top, score_prompt=True)


def plain(prompt, max_tokens):
    return ChatRequest([], GREEDY, max_tokens, prompt=prompt)


def assert_own(folder, engine, prompt, said):
    """``said`` of the prompt is what mlx-lm's model says in one pass over all of it."""
    model, tokenizer = helpers.reference_model(str(folder))
    tokens = engine.prepare(plain(prompt, 1)).tokens
    expected = nn.log_softmax(model(mx.array([tokens]))[0])
    assert [one.text for one in said] == [tokenizer.decode([token]) for token in tokens]
    assert said[0].top == []
    for token, one, row in zip(tokens[1:], said[1:], expected[:-1], strict=True):
        assert one.logprob == pytest.approx(row[token].item(), abs=1e-3)
        best = sorted(row.tolist(), reverse=True)[: len(one.top)]
        assert [value for _, value in one.top] == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize("top", [0, 1, 5])
def test_they_are_those_of_one_pass_over_the_whole_prompt(folder, engine, top):
    run = Run(engine).submit("a", scored(SHIP, top=top)).finish()
    assert_own(folder, engine, SHIP, run.prompts["a"])
    assert {len(one.top) for one in run.prompts["a"][1:]} == {top}
    assert b"".join(one.encoded for one in run.prompts["a"]).decode() == SHIP
    assert (run.texts["a"], run.reasons["a"], run.usage["a"].completion_tokens) == ("", "length", 0)
    assert len(run.prefill["a"]) > 5, "the prompt is read in portions"


def test_an_answer_follows_with_log_probabilities_of_its_own(folder, engine):
    run = Run(engine).submit("a", scored(FOX, 4)).finish()
    assert_own(folder, engine, FOX, run.prompts["a"])
    assert_own(
        folder, engine, engine.prepare(plain(FOX, 1)).tokens + run.tokens["a"], run.prompts["a"] + run.logprobs["a"]
    )
    assert len(run.logprobs["a"]) == 4


def test_prompts_of_one_token_and_of_token_ids_are_scored(folder, engine):
    run = Run(engine).submit("one", scored([77])).submit("ids", scored([77, 5, 200, 31])).finish()
    assert_own(folder, engine, [77], run.prompts["one"])
    assert_own(folder, engine, [77, 5, 200, 31], run.prompts["ids"])


def test_they_are_the_same_beside_others_which_go_on_meanwhile(folder, engine):
    run = Run(engine).submit("stream", plain(FOX, 60)).submit("b", scored(FOX + SHIP, 2)).submit("c", scored(SHIP, 1))
    run.submit("d", plain(SHIP + FOX, 5))
    before = 0
    while "b" not in run.prompts:
        run.step()
        if "stream" in run.counts and "stream" not in run.reasons:
            assert run.counts["stream"] == before + 1, "each step of reading gives the stream a token"
            before = run.counts["stream"]
    run.finish()
    for name, prompt in (("b", FOX + SHIP), ("c", SHIP)):
        assert_own(folder, engine, prompt, run.prompts[name])
    assert run.prompts.keys() == {"b", "c"}
    alone = Run(engine).submit("stream", plain(FOX, 60)).finish()
    assert run.tokens["stream"] == alone.tokens["stream"]
    assert engine._model.generator._rows.scorers == {}


def test_what_is_known_of_a_prompt_is_read_again_and_serves_others_afterwards(folder, engine):
    Run(engine).submit("first", plain(SHIP, 3)).finish()
    run = Run(engine).submit("a", scored(SHIP, 1)).finish()
    assert_own(folder, engine, SHIP, run.prompts["a"])
    assert run.usage["a"].cached_tokens == 0
    other = Run(engine).submit("next", plain(SHIP, 1)).finish()
    assert other.usage["next"].cached_tokens > 60


def test_the_next_worker_sends_them_unless_they_were_sent(folder, engine):
    whole = Run(engine).submit("a", scored(FOX, 6)).finish()
    for count in range(5):
        run = Run(engine)
        engine.submit("a", engine.prepare(scored(FOX, 6), whole.tokens["a"][:count]))
        run.finish()
        assert ("a" in run.prompts) == (count == 0)
        assert run.tokens["a"] == whole.tokens["a"][count:]


def test_they_come_with_the_first_token_or_the_ending(engine):
    for tokens in (0, 2):
        engine.submit("a", engine.prepare(scored(FOX, tokens)))
        steps = []
        while engine.busy():
            steps += [
                one for one in engine.step() if isinstance(one, Step) and (one.prompts or one.tokens or one.endings)
            ]
        assert [bool(one.prompts) for one in steps] == [True] + [False] * (len(steps) - 1)
        assert steps[0].tokens if tokens else steps[0].endings


def test_a_prompt_that_loses_its_room_in_mid_reading_is_scored_once_and_in_full(folder, engine):
    run = Run(engine).submit("a", scored(SHIP, 1))
    run.step()
    run.step()
    (uid,) = engine._live
    assert 1 < engine._live[uid].unread < len(engine._live[uid].tokens)
    engine._model.room.parking.add(uid)  # as where an older answer needs the room
    run.finish()
    assert "a" in run.parked
    assert_own(folder, engine, SHIP, run.prompts["a"])
    assert run.reasons == {"a": "length"}


MAMBA = {
    "model_type": "mamba", "hidden_size": 32, "intermediate_size": 64, "state_size": 4, "num_hidden_layers": 2,
    "conv_kernel": 4, "use_bias": False, "use_conv_bias": True, "time_step_rank": 4, "max_position_embeddings": 512,
}  # fmt: skip
BIGCODE = {
    "model_type": "gpt_bigcode", "n_embd": 32, "n_layer": 2, "n_inner": 64, "n_head": 4, "n_positions": 512,
    "layer_norm_epsilon": 1e-5,
}  # fmt: skip


@pytest.mark.parametrize(("kind", "config"), [(mamba, MAMBA), (gpt_bigcode, BIGCODE)], ids=["recurrent", "one row"])
def test_models_with_caches_of_other_kinds_score_prompts_too(tmp_path, kind, config):
    vocab_size, eos = tiny_llama.write_tokenizer(tmp_path)
    config = {**config, "vocab_size": vocab_size, "eos_token_id": eos}
    (tmp_path / "config.json").write_text(json.dumps(config))
    mx.random.seed(3)
    model = kind.Model(kind.ModelArgs.from_dict(config))
    wide = {name: array + 0.3 * mx.random.normal(array.shape) for name, array in tree_flatten(model.parameters())}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), wide, metadata={"format": "mlx"})
    engine = open_engine(tmp_path, prefill_chunk=16)
    run = Run(engine).submit("a", scored(SHIP)).submit("b", plain(SHIP, 4)).submit("c", scored(FOX, 2)).finish()
    for name, prompt in (("a", SHIP), ("c", FOX)):
        assert_own(tmp_path, engine, prompt, run.prompts[name])
    assert run.counts["b"] == 4
    engine.close()


# ---- memory


def test_the_logits_of_a_long_prompt_never_lie_in_memory_together(tmp_path, monkeypatch):
    monkeypatch.setattr(prompt_scores, "_LOGITS_BYTES", 1 << 20)
    vocab = 8_000
    tiny_llama.build(tmp_path, max_position_embeddings=4096, vocab_size=vocab)
    engine = open_engine(tmp_path, kv_bytes=64 << 20, prompt_cache_bytes=0)
    assert engine._model.portion == 32
    budget = engine._model.room.budget
    assert budget.scoring_bytes == scoring_bytes(vocab, 32)
    mx.synchronize(engine._model.generator.stream)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    run = Run(engine).submit("a", scored(SHIP * 6, top=5))
    while engine.busy():
        run.step()
        if engine._live and next(iter(engine._live.values())).unread > 1:
            assert budget.claimed_bytes > budget.scoring_bytes
    assert len(run.prompts["a"]) > 450, "all logits together would take 14 MB"
    reads = [done for done, _ in run.prefill["a"]]
    assert max(after - done for done, after in zip([0, *reads], reads, strict=False)) <= 32
    assert mx.get_peak_memory() - before < budget.scoring_bytes + (2 << 20)
    assert budget.claimed_bytes == 0
    engine.close()


def test_a_prompt_is_scored_only_where_its_logits_have_room(folder):
    engine = open_engine(folder, kv_bytes=1 << 20, prefill_chunk=16)
    engine._model.room.budget.scoring_bytes = 2 << 20
    run = Run(engine).submit("scored", scored(SHIP)).submit("plain", plain(SHIP, 2)).finish()
    assert run.refused["scored"].code == "context_length_exceeded"
    assert run.reasons == {"plain": "length"}
    engine.close()


# ---- faults


def test_a_row_whose_scores_fail_ends_alone(engine, monkeypatch):
    add = PromptScores._add

    def failing(self, logits):
        if len(self.told) > 40:
            logits = logits * mx.nan
        add(self, logits)

    monkeypatch.setattr(PromptScores, "_add", failing)
    run = Run(engine).submit("a", scored(SHIP)).submit("b", plain(SHIP, 5)).finish()
    assert isinstance(run.refused["a"], RequestError)
    assert "no finite score" in run.refused["a"].message
    assert "a" not in run.prompts
    assert run.reasons == {"b": "length"}


def test_one_that_is_cancelled_in_mid_reading_sends_nothing(engine):
    run = Run(engine).submit("a", scored(SHIP))
    run.step()
    engine.cancel("a")
    run.finish()
    assert run.reasons == {"a": "cancelled"}
    assert "a" not in run.prompts
    assert engine._model.generator._rows.scorers == {}


# ---- what tokens are called


def test_tokens_of_sentencepiece_keep_the_space_they_begin_with(tmp_path):
    """Decoded alone such a token loses it, and two tokens would have one text."""
    vocab = {"<unk>": 0, "▁the": 1, "the": 2, "▁": 3, "▁▁▁": 4, "<0xE6>": 5}
    bare = Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>"))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    bare.decoder = decoders.Sequence(steps)
    named = TokenLogprobs(PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="<unk>"))
    said = [named.told(token, -1.0, [(2, -2.0)]) for token in range(1, 6)]
    assert [one.text for one in said[:4]] == [" the", "the", " ", "   "]
    assert said[4].encoded == b"\xe6"
