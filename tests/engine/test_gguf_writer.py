"""Files by the ``gguf`` package's writer, converted: the tokens are mlx-lm's on the same weights."""

import importlib

import gguf
import gguf_files
import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from plimsoll.catalog.gguf.convert import convert
from plimsoll.catalog.gguf.families import FAMILIES, MIXTRAL
from plimsoll.catalog.gguf.reader import GgufError

HIDDEN, INNER, HEADS, KV_HEADS, LAYERS, EXPERTS = 64, 96, 4, 2, 2, 4
PROMPT = [5, 9, 200, 31, 77, 8]
YARN = {"factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16.0, "beta_slow": 2.0}
PLAIN = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
OF_EXPERTS = {"num_experts_per_tok": 2, "num_experts": EXPERTS, "num_local_experts": EXPERTS}
OF_EXPERTS |= {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True, "moe_intermediate_size": INNER}
OF_EXPERTS |= {"shared_expert_intermediate_size": 2 * INNER}


def build(model_type, **more):
    """mlx-lm's model of random weights, wide enough for clear tokens."""
    module = importlib.import_module(f"mlx_lm.models.{model_type}")
    vocab = len(gguf_files.bpe()["tokenizer.ggml.tokens"])
    config = PLAIN | {"model_type": model_type, "vocab_size": vocab, "head_dim": HIDDEN // HEADS} | more
    mx.random.seed(11)
    model = module.Model(module.ModelArgs.from_dict(config))
    drawn = [
        (name, mx.random.normal(old.shape) * 0.3 if old.ndim > 1 else mx.ones(old.shape))
        for name, old in tree_flatten(model.parameters())
    ]
    model.load_weights(drawn)
    mx.eval(model.parameters())
    return model


def permuted(weight, heads):
    """Halves of a head become neighbours, as llama.cpp's converter orders q and k of Llama's family."""
    return weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def write(path, model, arch, metadata, *, split=0):
    family = MIXTRAL if arch == "llama" and "expert_count" in metadata else FAMILIES[arch]
    names = {renamed: part for part, renamed in family.layer.items()}
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split)
    for key, value in gguf_files.llama_metadata(gguf_files.bpe()).items():
        if key != "general.architecture":
            put(writer, key.replace("llama.", f"{arch}.", 1), value)
    put(writer, f"{arch}.attention.head_count_kv", KV_HEADS)
    for key, value in metadata.items():
        put(writer, f"{arch}.{key}", value)
    for name, array in tree_flatten(model.parameters()):
        value, module = np.array(array), name.rpartition(".")[0]
        if not module.startswith("model.layers."):
            called = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[module]
        else:
            _, _, number, part = module.split(".", 3)
            called = f"blk.{number}.{names[part]}"
            if family.rope_traditional and names[part] in ("attn_q", "attn_k"):
                value = permuted(value, HEADS if names[part] == "attn_q" else KV_HEADS)
        if called.endswith("ffn_gate_inp_shexp"):
            value = value.squeeze(0)  # as llama.cpp's converter writes it
        writer.add_tensor(f"{called}.{name.rpartition('.')[2]}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def put(writer, key, value):
    if isinstance(value, list):
        writer.add_array(key, value)
    else:
        adds = {bool: writer.add_bool, str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
        if key not in writer.kv_data[0]:
            adds[type(value)](key, value)


def tokens_of(model):
    ids = list(PROMPT)
    for _ in range(10):
        ids.append(int(model(mx.array([ids]))[0, -1].argmax()))
    return ids


def logits_of(model):
    return np.array(model(mx.array([PROMPT * 12])).astype(mx.float32))


def agrees(model, path, folder):
    convert(path, folder)
    found, config = load_model(folder)
    assert np.allclose(logits_of(found), logits_of(model), rtol=1e-3, atol=1e-3)
    assert tokens_of(found) == tokens_of(model)
    return config


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_yarn_gives_the_same_tokens(arch, tmp_path):
    model = build(arch, rope_scaling={"rope_type": "yarn", **YARN})
    keys = {"type": "yarn", "factor": 4.0, "original_context_length": 64, "yarn_beta_fast": 16.0, "yarn_beta_slow": 2.0}
    write(tmp_path / "m.gguf", model, arch, {f"rope.scaling.{key}": value for key, value in keys.items()})
    config = agrees(model, tmp_path / "m.gguf", tmp_path / "out")
    assert config["rope_scaling"] == {"rope_type": "yarn", **YARN}
    plain = build(arch)
    assert not np.allclose(logits_of(plain), logits_of(model), rtol=1e-3, atol=1e-3)


def test_yarn_that_mlx_lm_would_compute_otherwise_is_refused(tmp_path):
    keys = {"type": "yarn", "factor": 4.0, "original_context_length": 64, "yarn_ext_factor": 0.5}
    write(tmp_path / "m.gguf", build("qwen2"), "qwen2", {f"rope.scaling.{key}": value for key, value in keys.items()})
    with pytest.raises(GgufError, match="yarn_ext_factor is 0"):
        convert(tmp_path / "m.gguf", tmp_path / "out")


@pytest.mark.parametrize(
    ("arch", "model_type"), [("qwen2moe", "qwen2_moe"), ("qwen3moe", "qwen3_moe"), ("llama", "mixtral")]
)
def test_experts_give_the_same_tokens(arch, model_type, tmp_path):
    model = build(model_type, **OF_EXPERTS, tie_word_embeddings=model_type != "qwen2_moe")
    keys = {"expert_count": EXPERTS, "expert_used_count": 2, "expert_feed_forward_length": INNER}
    keys |= {"expert_shared_feed_forward_length": 2 * INNER}
    write(tmp_path / "m.gguf", model, arch, keys)
    assert agrees(model, tmp_path / "m.gguf", tmp_path / "out")["model_type"] == model_type


def test_experts_of_a_family_that_is_not_known_with_some_are_refused(tmp_path):
    write(tmp_path / "m.gguf", build("qwen2"), "qwen2", {"expert_count": 4})
    with pytest.raises(GgufError, match="mixture of experts"):
        convert(tmp_path / "m.gguf", tmp_path / "out")


def test_a_split_model_gives_the_same_tokens_and_a_missing_part_is_named(tmp_path):
    model = build("qwen3")
    write(tmp_path / "m.gguf", model, "qwen3", {}, split=8)
    first, second, *_, last = sorted(tmp_path.glob("m-0000*.gguf"))
    agrees(model, first, tmp_path / "out")
    with pytest.raises(GgufError, match="not the first"):
        convert(second, tmp_path / "second")
    last.unlink()
    with pytest.raises(GgufError, match=f"the part {last.name} of the model is not there"):
        convert(first, tmp_path / "short")
