"""GGUF's other tensor types and families, converted, held against the ``gguf`` package and mlx-lm."""

import json

import gguf
import gguf_files
import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_model

from plimsoll.catalog.gguf import convert as gguf_convert
from plimsoll.catalog.gguf.convert import convert
from plimsoll.catalog.gguf.families import FAMILIES, expected_shapes
from plimsoll.catalog.gguf.reader import SUPPORTED
from plimsoll.catalog.gguf.requantize import BITS, Loss, requantize

LAYOUTS = {layout.name: layout for layout in SUPPORTED.values()}
LAYERS = 6  # as many as Gemma's pattern of windows has
EXPERTS = 4
# Where the float16 scales of a block stand: random bytes there would be numbers of any size.
SCALES = {
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
    "TQ1_0": [52],
    "TQ2_0": [64],
    "MXFP4": [],
}


def blocks_of(name, count):
    random = np.random.default_rng(3)
    layout = LAYOUTS[name]
    blocks = random.integers(0, 256, (count, layout.block_bytes), np.uint8)
    for at in SCALES.get(name, [0]):
        blocks[:, at : at + 2] = (random.uniform(0.001, 0.01, (count, 1))).astype("<f2").view(np.uint8)
    if name == "MXFP4":
        blocks[:, 0] = random.integers(120, 130, count)
    if name == "IQ1_M":  # its scale is spread over the highest bits of four words
        blocks[:, 49:56:2] = blocks[:, 49:56:2] & 0x0F | np.array([0x10, 0x50, 0x20, 0x20], np.uint8)
    return blocks


@pytest.mark.parametrize("name", BITS)
def test_mlx_reads_what_the_gguf_package_reads(name):
    layout, blocks, loss = LAYOUTS[name], blocks_of(name, 64), Loss()
    arrays = requantize(layout, blocks, loss)
    expected = gguf.dequantize(blocks, gguf.GGMLQuantizationType[name]).reshape(-1, 32)
    weight = mx.array(np.ascontiguousarray(arrays["weight"]).view(np.uint32).reshape(len(expected), -1))
    scales, biases = (mx.array(arrays[part].astype(np.float32)) for part in ("scales", "biases"))
    found = np.array(mx.dequantize(weight, scales, biases, group_size=32, bits=BITS[name]))
    error = 100 * np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean())
    assert error == pytest.approx(loss.percent(), rel=0.01, abs=1e-4)
    assert error < {4: 0.1, 5: 0.1, 6: 2.5, 8: 0.6}[BITS[name]]
    if name in ("Q5_0", "Q5_1"):
        assert np.array_equal(found, expected)
    assert loss.kinds == [name]


def test_every_type_of_the_reader_has_the_packages_block():
    for name, layout in LAYOUTS.items():
        kind = gguf.GGMLQuantizationType[name]
        assert gguf.GGML_QUANT_SIZES[kind] == (layout.block, layout.block_bytes), name


def metadata(family, tokenizer):
    plain = gguf_files.llama_metadata(tokenizer)
    renamed = {key.replace("llama.", f"{family}.", 1): value for key, value in plain.items()}
    experts = {"expert_count": EXPERTS, "expert_used_count": 2, "expert_feed_forward_length": gguf_files.INNER}
    experts |= {"expert_shared_feed_forward_length": gguf_files.INNER}
    told = {f"{family}.{key}": value for key, value in experts.items() if FAMILIES[family].experts}
    return renamed | {"general.architecture": family} | told


def model_file(path, family, seed=5):
    """A whole little model of random numbers; the tensors under mlx-lm's names."""
    tokenizer = gguf_files.bpe()
    sizes = {"hidden_size": gguf_files.HIDDEN, "intermediate_size": gguf_files.INNER, "num_hidden_layers": LAYERS}
    sizes |= {"num_attention_heads": gguf_files.HEADS, "num_key_value_heads": gguf_files.KV_HEADS}
    sizes |= {
        "head_dim": gguf_files.HIDDEN // gguf_files.HEADS,
        "tie_word_embeddings": family not in ("phi3", "qwen2moe"),
    }
    sizes |= {"vocab_size": len(tokenizer["tokenizer.ggml.tokens"]), FAMILIES[family].experts: EXPERTS}
    theirs = {renamed: part for part, renamed in FAMILIES[family].layer.items()}
    outside = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    random, tensors, values = np.random.default_rng(seed), {}, {}
    for name, shape in expected_shapes(FAMILIES[family], sizes).items():
        module, _, kind = name.rpartition(".")
        number, part = (
            (module.split(".")[2], theirs.get(module.partition("layers.")[2][2:])) if "layers" in name else ("", "")
        )
        called = f"blk.{number}.{part}.{kind}" if part else f"{outside[module]}.{kind}"
        values[name] = (random.standard_normal(shape) * 0.1).astype("<f4")
        tensors[called] = ("F32", shape, values[name].tobytes())
    gguf_files.write(path, metadata(family, tokenizer) | {f"{family}.block_count": LAYERS}, tensors)
    return values


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_each_family_is_loaded_with_every_tensor_in_its_place(tmp_path, family):
    values = model_file(tmp_path / "m.gguf", family)
    convert(tmp_path / "m.gguf", tmp_path / "out")
    model, config = load_model(tmp_path / "out", strict=True)
    weights = mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert weights.keys() == values.keys()
    for name, value in values.items():
        shift = FAMILIES[family].norm_shift if "norm" in name else 0.0
        assert np.allclose(np.array(weights[name]), value - shift, atol=1e-6), name
    assert config["model_type"] == FAMILIES[family].model_type
    logits = model(mx.array([[1, 5, 9]]))
    assert bool(mx.isfinite(logits).all())
    assert json.loads((tmp_path / "out" / "conversion.json").read_text()) == {"loss_percent": 0.0, "types": {}}


def test_quantized_tensors_of_several_types_are_run_with_their_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_convert, "_REQUANTIZED_PIECE_BYTES", 300)
    monkeypatch.setattr(gguf_files, "HIDDEN", 256)
    monkeypatch.setattr(gguf_files, "INNER", 256)
    tensors = {}
    for part, kind in (("attn_q", "Q4_K"), ("ffn_up", "Q6_K"), ("ffn_down", "Q2_K"), ("attn_output", "BF16")):
        count = 256 * 256 // LAYOUTS[kind].block
        if kind == "BF16":
            halves = np.random.default_rng(1).standard_normal(count).astype(np.float32).view(np.uint32) >> 16
            raw = halves.astype("<u2").tobytes()
        else:
            raw = blocks_of(kind, count).tobytes()
        tensors[f"blk.0.{part}.weight"] = (kind, (256, 256), raw)
    gguf_files.tiny_llama(tmp_path / "m.gguf", tensors=tensors)
    convert(tmp_path / "m.gguf", tmp_path / "out")
    model, config = load_model(tmp_path / "out")
    quantized = {name: one["bits"] for name, one in config["quantization"].items() if isinstance(one, dict)}
    layer = "model.layers.0"
    assert quantized == {f"{layer}.self_attn.q_proj": 4, f"{layer}.mlp.up_proj": 8, f"{layer}.mlp.down_proj": 6}
    told = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert set(told["types"]) == {"Q4_K", "Q6_K", "Q2_K"}
    assert 0 < told["types"]["Q4_K"] < 0.1 < told["loss_percent"] < 2.5
    module = model.layers[0].mlp.up_proj
    found = mx.dequantize(module.weight, module.scales, module.biases, group_size=32, bits=8)
    expected = gguf.dequantize(
        np.frombuffer(tensors["blk.0.ffn_up.weight"][2], np.uint8).reshape(256, -1), gguf.GGMLQuantizationType.Q6_K
    )
    assert np.allclose(np.array(found.astype(mx.float32)), expected, atol=np.abs(expected).max() / 100)
    assert bool(mx.isfinite(model(mx.array([[1, 5, 9]])).astype(mx.float32)).all())


def test_phis_long_rope_is_kept(tmp_path):
    factors = [float(number) for number in range(1, 9)]
    model_file(tmp_path / "m.gguf", "phi3")
    plain = (tmp_path / "m.gguf").read_bytes()
    assert b"rope_factors" not in plain
    tokenizer = gguf_files.bpe()
    from plimsoll.catalog.gguf.convert import _of_rope_tensors
    from plimsoll.catalog.gguf.reader import read_header

    raw = ("F32", (8,), np.array(factors, "<f4").tobytes())
    told = metadata("phi3", tokenizer) | {"phi3.rope.scaling.original_context_length": 64}
    gguf_files.write(tmp_path / "r.gguf", told, {"rope_factors_long.weight": raw, "rope_factors_short.weight": raw})
    header = read_header(tmp_path / "r.gguf")
    found = _of_rope_tensors(header, {"max_position_embeddings": 256})
    assert found["rope_scaling"] == {"type": "longrope", "long_factor": factors, "short_factor": factors}
    assert found["original_max_position_embeddings"] == 64
