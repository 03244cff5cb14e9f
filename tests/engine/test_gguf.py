import contextlib
import functools
import itertools
import json
import math
import struct
import subprocess
import sys

import gguf_files
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model, load_tokenizer
from tokenizers import Tokenizer

from plimsoll.catalog.gguf import reader as gguf_reader
from plimsoll.catalog.gguf.config import llama3_scaling
from plimsoll.catalog.gguf.convert import convert, main
from plimsoll.catalog.gguf.reader import GgufError

KINDS = ["F32", "F16", "Q4_0", "Q4_1", "Q8_0"]


@pytest.fixture
def converted(tmp_path):
    def make(kind="F32", tokenizer=None, **changes):
        source = gguf_files.tiny_llama(tmp_path / "model.gguf", kind, tokenizer, **changes)
        convert(source, tmp_path / "out")
        return tmp_path / "out"

    return make


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


# ---- weights


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_of_the_file_is_in_the_folder_exactly(converted, kind):
    folder = converted(kind, output=True)
    weights = mx.load(str(folder / "model.safetensors"))
    vocab_size = len(gguf_files.bpe()["tokenizer.ggml.tokens"])
    tensors = gguf_files.llama_tensors(kind, vocab_size, output=True)
    names = {
        "token_embd.weight": "model.embed_tokens",
        "output.weight": "lm_head",
        "output_norm.weight": "model.norm",
        "blk.0.attn_k.weight": "model.layers.0.self_attn.k_proj",
        "blk.1.attn_output.weight": "model.layers.1.self_attn.o_proj",
        "blk.1.ffn_norm.weight": "model.layers.1.post_attention_layernorm",
        "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj",
    }
    for name, module in names.items():
        own_kind, shape, raw = tensors[name]
        found = weights[f"{module}.weight"]
        if f"{module}.scales" in weights:
            scales, biases = (weights[f"{module}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
            found = mx.dequantize(found, scales, biases, group_size=32, bits=8 if kind == "Q8_0" else 4)
        expected = gguf_files.numbers(own_kind, shape, raw)
        assert np.array_equal(np.array(found.astype(mx.float32)), expected), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_arrays_are_the_ones_that_mlx_reads_from_the_file(converted, tmp_path, kind):
    folder = converted(kind)
    theirs = mx.load(str(tmp_path / "model.gguf"))
    ours = mx.load(str(folder / "model.safetensors"))
    assert len(theirs) == len(ours)
    for part in ("weight", "scales", "biases"):
        if (name := f"blk.1.ffn_up.{part}") in theirs:
            mine = ours[f"model.layers.1.mlp.up_proj.{part}"]
            assert mine.dtype == theirs[name].dtype
            assert mx.array_equal(mine, theirs[name])


def test_a_tensor_of_several_pieces_is_written_whole(converted, monkeypatch):
    whole = mx.load(str(converted("Q4_1") / "model.safetensors"))
    monkeypatch.setattr("plimsoll.catalog.gguf.convert._PIECE_BYTES", 200)
    pieces = mx.load(str(converted("Q4_1") / "model.safetensors"))
    assert all(mx.array_equal(whole[name], pieces[name]) for name in whole)


@pytest.mark.parametrize("kind", KINDS)
def test_mlx_lm_loads_the_folder_and_generates_with_it(converted, kind):
    folder = converted(kind)
    model, config = load_model(folder)
    model.set_dtype(mx.float32)
    tokenizer = load_tokenizer(folder, eos_token_ids=config["eos_token_id"])
    prompt = mx.array(tokenizer.encode("the 12"))
    tokens = [token for token, _ in generate_step(prompt, model, max_tokens=4)]
    assert len(tokens) == 4
    assert isinstance(tokenizer.decode(tokens), str)
    assert tokenizer.eos_token_ids == {2}


def test_the_converted_model_computes_what_the_formulas_say(converted):
    """One layer's worth of an independent forward pass, rotating neighbours as ggml does."""
    folder = converted("F32")
    model, _ = load_model(folder)
    ids = [5, 70, 9]
    mine = np.array(model(mx.array([ids])))[0]
    assert np.allclose(mine, reference_logits(ids), atol=1e-4)


def reference_logits(ids):
    vocab_size = len(gguf_files.bpe()["tokenizer.ggml.tokens"])
    raw = gguf_files.llama_tensors("F32", vocab_size)
    weight = {name: gguf_files.numbers(*tensor).astype(np.float64) for name, tensor in raw.items()}
    dim = gguf_files.HIDDEN // gguf_files.HEADS

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight[name]

    def heads(x, count):
        x = x.reshape(len(ids), count, dim // 2, 2)
        angles = np.arange(len(ids))[:, None] * 10000.0 ** (-np.arange(0, dim, 2) / dim)
        turned = (x[..., 0] + 1j * x[..., 1]) * np.exp(1j * angles)[:, None]
        return np.stack((turned.real, turned.imag), -1).reshape(len(ids), count, dim)

    x = weight["token_embd.weight"][ids]
    for layer in range(gguf_files.LAYERS):
        part = {name.split(".")[2]: value for name, value in weight.items() if name.startswith(f"blk.{layer}.")}
        h = norm(x, f"blk.{layer}.attn_norm.weight")
        q, k = heads(h @ part["attn_q"].T, gguf_files.HEADS), heads(h @ part["attn_k"].T, gguf_files.KV_HEADS)
        v = (h @ part["attn_v"].T).reshape(len(ids), gguf_files.KV_HEADS, dim)
        k, v = (np.repeat(a, gguf_files.HEADS // gguf_files.KV_HEADS, axis=1) for a in (k, v))
        scores = np.einsum("ihd,jhd->hij", q, k) / math.sqrt(dim)
        scores = np.where(np.tri(len(ids), dtype=bool), scores, -np.inf)
        share = np.exp(scores - scores.max(-1, keepdims=True))
        share /= share.sum(-1, keepdims=True)
        x = x + np.einsum("hij,jhd->ihd", share, v).reshape(len(ids), -1) @ part["attn_output"].T
        h = norm(x, f"blk.{layer}.ffn_norm.weight")
        gate = h @ part["ffn_gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ part["ffn_up"].T)) @ part["ffn_down"].T
    return norm(x, "output_norm.weight") @ weight["token_embd.weight"].T


# ---- config


def test_only_quantized_modules_are_named_with_their_bits(converted):
    quantization = config_of(converted("Q8_0"))["quantization"]
    assert (quantization["group_size"], quantization["bits"]) == (32, 8)
    assert quantization["model.layers.1.mlp.down_proj"] == {"group_size": 32, "bits": 8}
    assert not any("norm" in name for name in quantization)


def test_tensors_of_different_types_live_in_one_model(converted):
    vocab_size = len(gguf_files.bpe()["tokenizer.ggml.tokens"])
    eight = gguf_files.llama_tensors("Q8_0", vocab_size)["token_embd.weight"]
    folder = converted("Q4_0", tensors={"token_embd.weight": eight})
    model, config = load_model(folder)
    assert config["quantization"]["model.embed_tokens"]["bits"] == 8
    assert (model.model.embed_tokens.bits, model.layers[0].mlp.up_proj.bits) == (8, 4)


def test_a_plain_model_has_no_quantization(converted):
    assert "quantization" not in config_of(converted("F16"))


def test_embeddings_are_tied_unless_there_is_an_output_tensor(converted):
    assert config_of(converted())["tie_word_embeddings"] is True
    assert config_of(converted(output=True))["tie_word_embeddings"] is False


def test_the_config_says_what_the_metadata_say(converted):
    config = config_of(converted(metadata={"llama.rope.freq_base": 500000.0}))
    expected = {
        "rope_theta": 500000.0,
        "rope_traditional": True,
        "max_position_embeddings": 256,
        "head_dim": 16,
        "num_key_value_heads": 2,
        "bos_token_id": 1,
        "eos_token_id": [2],
    }
    assert {key: config[key] for key in expected} == expected
    assert math.isclose(config["rms_norm_eps"], 1e-5, rel_tol=1e-6)


def test_linear_rope_scaling_is_kept(converted):
    folder = converted(metadata={"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0})
    assert config_of(folder)["rope_scaling"] == {"type": "linear", "factor": 4.0}
    assert load_model(folder)[0].layers[0].self_attn.rope.scale == 0.25


def llama3_divisors(theta, dims, factor):
    """Llama 3.1's formula as published: long waves are stretched, short ones kept, between them a ramp."""
    divisors = []
    for frequency in (theta ** -(np.arange(0, dims, 2) / dims)).tolist():
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4:
            scaled = frequency
        elif wavelength > 8192 / 1:
            scaled = frequency / factor
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            scaled = (1 - smooth) * frequency / factor + smooth * frequency
        divisors.append(frequency / scaled)
    return np.array(divisors, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_recovered_from_its_tensor(converted, factor):
    divisors = llama3_divisors(500000.0, 16, factor)
    tensor = ("F32", divisors.shape, divisors.tobytes())
    folder = converted(metadata={"llama.rope.freq_base": 500000.0}, tensors={"rope_freqs.weight": tensor})
    scaling = config_of(folder)["rope_scaling"]
    assert (scaling["rope_type"], scaling["factor"]) == ("llama3", factor)
    rope = load_model(folder)[0].layers[0].self_attn.rope
    assert np.allclose(np.array(rope._freqs), 500000.0 ** (np.arange(0, 16, 2) / 16) * divisors, rtol=1e-4)


def test_divisors_of_another_formula_are_refused():
    with pytest.raises(GgufError, match="llama3 formula"):
        llama3_scaling([1.0, 1.5, 2.0, 3.0], {"head_dim": 8, "rope_theta": 10000.0})


@pytest.mark.parametrize("largest", [0.0, -1.0, math.inf])
def test_divisors_that_are_no_divisors_are_refused(largest):
    with pytest.raises(GgufError, match="as its largest number, expected one above 0"):
        llama3_scaling([largest, -2.0], {"head_dim": 4, "rope_theta": 10000.0})


def test_a_token_of_great_length_is_refused_before_its_splits_are_tried(converted):
    tokenizer = gguf_files.spm()
    tokenizer["tokenizer.ggml.tokens"][-1] = "a" * 1025
    with pytest.raises(GgufError, match="a token has 1025 characters, above the bound of 1024"):
        converted(tokenizer=tokenizer)


def test_a_list_that_is_too_long_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_reader, "_MAX_VALUES", 3)
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQQ1sIIQ4x", 3, 0, 1, 1, b"a", 9, 0, 4))
    with pytest.raises(GgufError, match="4 values are announced at byte 49, above the bound of 3"):
        gguf_reader.read_header(tmp_path / "m.gguf")


def test_a_header_that_is_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_reader, "_MAX_HEADER_BYTES", 1 << 10)
    with pytest.raises(GgufError, match="the header has more than the 0 MiB that it may have"):
        gguf_reader.read_header(gguf_files.tiny_llama(tmp_path / "m.gguf"))


def test_divisors_of_one_are_no_scaling():
    assert llama3_scaling([1.0, 1.0], {"head_dim": 4, "rope_theta": 10000.0}) is None


def test_turn_ends_are_end_tokens_too(converted):
    metadata = {"tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.eot_token_id": 1}
    folder = converted(metadata=metadata)
    assert config_of(folder)["eos_token_id"] == [0, 1, 2]
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [0, 1, 2]


# ---- tokenizer


def test_digits_are_split_one_by_one_though_there_are_merges_for_them(converted):
    ids = Tokenizer.from_file(str(converted() / "tokenizer.json")).encode("the 123 the").ids
    tokens = gguf_files.bpe()["tokenizer.ggml.tokens"]
    assert [tokens[id_] for id_ in ids] == ["t", "he", "Ġ", "1", "2", "3", "Ġthe"]


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", ["Ġ", "1", "2", "3", "4"]),
        ("gpt-2", ["Ġ", "123", "4"]),
        ("llama-bpe", ["Ġ", "123", "4"]),
        ("qwen2", ["Ġ", "1", "2", "3", "4"]),
        ("default", ["Ġ", "123", "4"]),
    ],
)
def test_each_pre_tokenizer_splits_numbers_its_own_way(converted, pre, pieces):
    ids = Tokenizer.from_file(str(converted(tokenizer=gguf_files.bpe(pre)) / "tokenizer.json")).encode(" 1234").ids
    tokens = gguf_files.bpe()["tokenizer.ggml.tokens"]
    assert [tokens[id_] for id_ in ids if id_ != 1] == pieces  # llama-bpe begins with bos


@given(st.text())
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_comes_back_from_a_byte_level_tokenizer(tmp_path, text):
    tokenizer = built_once(tmp_path)
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


_built = {}


def built_once(tmp_path):
    if "bpe" not in _built:
        convert(gguf_files.tiny_llama(tmp_path / "model.gguf"), tmp_path / "out")
        _built["bpe"] = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    return _built["bpe"]


def test_control_tokens_are_special_and_whole(converted):
    tokenizer = load_tokenizer(converted())
    assert tokenizer.encode("<|im_start|>t<|im_end|>") == [1, 3 + ord("t"), 2]
    assert tokenizer.decode([1, 3 + ord("t"), 2], skip_special_tokens=True) == "t"
    assert type(tokenizer.detokenizer).__name__ == "BPEStreamingDetokenizer"


def test_user_defined_tokens_are_whole_and_shown(converted):
    tokenizer = gguf_files.bpe()
    tokenizer["tokenizer.ggml.tokens"] += ["<think>"]
    tokenizer["tokenizer.ggml.token_type"] += [4]
    found = load_tokenizer(converted(tokenizer=tokenizer))
    ids = found.encode("<think>")
    assert ids == [len(tokenizer["tokenizer.ggml.tokens"]) - 1]
    assert found.decode(ids, skip_special_tokens=True) == "<think>"


@pytest.mark.parametrize("add_bos", [True, False])
def test_bos_is_added_as_the_file_says(converted, add_bos):
    tokenizer = load_tokenizer(converted(metadata={"tokenizer.ggml.add_bos_token": add_bos}))
    assert tokenizer.encode("t") == ([1] if add_bos else []) + [3 + ord("t")]
    assert tokenizer.encode("t", add_special_tokens=False) == [3 + ord("t")]


def test_eos_is_added_where_the_file_says_so(converted):
    folder = converted(metadata={"tokenizer.ggml.add_eos_token": True})
    assert load_tokenizer(folder).encode("t") == [3 + ord("t"), 2]
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode("t").ids == [3 + ord("t"), 2]


def test_llama3_adds_bos_unless_the_file_says_otherwise(converted):
    folder = converted(tokenizer=gguf_files.bpe("llama-bpe"), metadata={"tokenizer.ggml.add_bos_token": None})
    assert load_tokenizer(folder).encode("t") == [1, 3 + ord("t")]


def test_the_chat_template_is_the_files_own(converted):
    tokenizer = load_tokenizer(converted())
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text == "<|im_start|>hi<|im_end|>"


def sentencepiece(text, pieces):
    """SentencePiece's BPE by its definition: again and again join the neighbours whose whole scores best."""
    parts = list("▁" + text.replace(" ", "▁"))
    while True:
        joins = [(pieces[a + b], -at) for at, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in pieces]
        if not joins:
            return parts
        at = -max(joins)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


@given(st.text("helow ", min_size=1))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_sentencepiece_vocabulary_gives_sentencepieces_tokens(tmp_path, text):
    if "spm" not in _built:
        convert(gguf_files.tiny_llama(tmp_path / "model.gguf", tokenizer=gguf_files.spm()), tmp_path / "out")
        _built["spm"] = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    tokens = gguf_files.spm()["tokenizer.ggml.tokens"]
    ids = _built["spm"].encode(text).ids
    assert [tokens[id_] for id_ in ids] == ["<s>", *sentencepiece(text, gguf_files.SPM_PIECES)]
    assert _built["spm"].decode(ids) == text


def test_sentencepiece_falls_back_to_bytes_and_is_streamed_in_linear_time(converted):
    tokenizer = load_tokenizer(converted(tokenizer=gguf_files.spm()))
    ids = tokenizer.encode("é", add_special_tokens=False)
    assert ids == [259, 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode(ids) == "é"
    assert type(tokenizer.detokenizer).__name__ == "SPMStreamingDetokenizer"


# ---- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "mamba"}, "architecture 'mamba' is not supported"),
        ({"general.architecture": None}, "architecture '' is not supported"),
        ({"llama.expert_count": 8}, "llama.expert_used_count is missing"),
        (
            {"llama.expert_count": 8, "llama.expert_used_count": 2, "llama.attention.key_length": 32},
            "a head has 32 values: mlx-lm's mixtral has 64 / 4",
        ),
        ({"split.count": 3, "split.no": 0}, "one of 3 parts, and its name says 1"),
        ({"split.count": 3, "split.no": 1}, "not the first"),
        ({"llama.rope.scaling.type": "longrope"}, "rope scaling of type 'longrope'"),
        ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count is 8"),
        ({"llama.block_count": None}, "llama.block_count is missing"),
        ({"llama.block_count": "two"}, "llama.block_count is 'two', expected a whole number"),
        ({"llama.block_count": 3_000_000_000}, "llama.block_count is 3000000000"),
        ({"llama.block_count": 3}, "model.layers.2.input_layernorm.weight is missing"),
        ({"llama.block_count": 1}, "'blk.1.attn_norm.weight' is not part of"),
        ({"llama.feed_forward_length": 128}, r"has the shape \(96, 64\), expected \(128, 64\)"),
        ({"llama.attention.layer_norm_rms_epsilon": 0.0}, "expected a number above 0"),
        ({"llama.rope.freq_base": "fast"}, "freq_base is 'fast', expected a number"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer model 'bert' is not supported"),
        ({"tokenizer.ggml.pre": "tekken"}, "pre-tokenizer 'tekken' is not known"),
        ({"tokenizer.ggml.tokens": None}, "tokens is missing or empty"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "is not a list of str"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "'a' is in the vocabulary twice"),
        ({"tokenizer.ggml.token_type": [1]}, "tokens have 1 token types"),
        ({"tokenizer.ggml.eos_token_id": 99999}, "eos_token_id is 99999 and there are"),
        ({"tokenizer.ggml.merges": ["ab"]}, "the merge 'ab' is not two tokens"),
        ({"tokenizer.ggml.merges": ["t zz"]}, "the tokenizer can't be built"),
        ({"tokenizer.ggml.add_bos_token": "yes"}, "expected true or false"),
        ({"tokenizer.chat_template": 7}, "expected text"),
        ({"general.alignment": 12}, "general.alignment is 12"),
    ],
)
def test_metadata_that_can_not_be_served_are_refused(converted, changes, message):
    with pytest.raises(GgufError, match=message):
        converted(metadata=changes)


def test_a_sentencepiece_vocabulary_needs_its_scores(converted):
    with pytest.raises(GgufError, match="tokens have 0 scores"):
        converted(tokenizer=gguf_files.spm() | {"tokenizer.ggml.scores": None})


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (
            "blk.0.attn_q.weight",
            ("Q8_K", (64, 64), b"\0" * 64),
            "attn_q.weight' is of type Q8_K, supported are F32, F16",
        ),
        ("blk.0.attn_q.weight", None, "self_attn.q_proj.weight is missing"),
        ("blk.0.attn_q.bias", ("F32", (64,), b"\0" * 256), "'blk.0.attn_q.bias' is not part of"),
        ("blk.0.attn_q.weight", ("Q4_0", (128, 16), b"\0" * 18), "impossible shape"),
        ("blk.0.attn_q.weight", ("F32", (0, 64), b""), "impossible shape"),
        ("blk.0.attn_q.weight", ("F32", (1, 1, 1, 1, 1), b"\0" * 4), "has 5 dimensions"),
        ("blk.0.attn_q.weight", ("F32", (1 << 40, 1 << 40), b"\0" * 64), "the file is cut off"),
        ("blk.0.ffn_up.weight", ("Q8_0", (96, 64), b"\xff\x7f" * 3264), "not finite"),
        ("rope_freqs.weight", ("F32", (8,), struct.pack("<8f", *range(1, 9))), "llama3 formula"),
        ("token_embd.weight", ("F32", (8, 64), b"\0" * 2048), "vocabulary is larger"),
    ],
)
def test_tensors_that_can_not_be_served_are_refused(converted, name, tensor, message):
    with pytest.raises(GgufError, match=message):
        converted(tensors={name: tensor})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"PK\x03\x04 and more of it", "not a GGUF file"),
        (b"GGUF", "cut off"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1 is not supported"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648 is not supported"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "1152921504606846976 tensors are announced"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "metadata keys are announced"),
        (b"GGUF" + struct.pack("<IQQQ2sIQQ", 3, 0, 1, 2, b"\xff\xfe", 4, 0, 0), "is not UTF-8"),
        (b"GGUF" + struct.pack("<IQQQ1sIQ", 3, 0, 1, 1, b"a", 77, 0), "unknown type 77"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 9, 0), "unsupported type 9"),
    ],
)
def test_what_is_no_whole_gguf_file_is_refused(tmp_path, content, message):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(GgufError, match=message):
        convert(tmp_path / "model.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@functools.cache
def tiny_content():
    tokenizer = gguf_files.bpe()
    tensors = gguf_files.llama_tensors("Q4_0", len(tokenizer["tokenizer.ggml.tokens"]))
    return gguf_files.content(gguf_files.llama_metadata(tokenizer), tensors)


@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_cut_off_anywhere_is_refused(tmp_path, data):
    content = tiny_content()
    (tmp_path / "model.gguf").write_bytes(content[: data.draw(st.integers(1, len(content) - 32))])
    with pytest.raises(GgufError):
        convert(tmp_path / "model.gguf", tmp_path / "out")


@given(st.lists(st.tuples(st.integers(4, 9000), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_broken_bytes_in_the_header_are_refused_or_harmless(tmp_path, changes):
    content = bytearray(tiny_content())
    for at, value in changes:
        content[at % len(content)] = value
    (tmp_path / "model.gguf").write_bytes(content)
    with contextlib.suppress(GgufError):
        convert(tmp_path / "model.gguf", tmp_path / "out")


def test_a_duplicated_tensor_name_is_refused(tmp_path):
    content = tiny_content().replace(b"blk.0.attn_k.weight", b"blk.0.attn_q.weight")
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(GgufError, match="there twice"):
        convert(tmp_path / "model.gguf", tmp_path / "out")


# ---- the command


def test_the_command_converts(tmp_path):
    source = gguf_files.tiny_llama(tmp_path / "model.gguf")
    command = [sys.executable, "-m", "plimsoll.catalog.gguf.convert", str(source), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "config.json").is_file()


def test_the_command_says_in_one_line_what_is_wrong(tmp_path, capsys):
    (tmp_path / "model.gguf").write_bytes(b"no gguf")
    assert main([str(tmp_path / "model.gguf"), str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == "the file is not a GGUF file: it does not begin with the letters GGUF\n"
    assert main([str(tmp_path / "none.gguf"), str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert main([]) == 2
