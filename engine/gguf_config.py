"""The metadata of a Llama GGUF -> ``config.json`` for mlx-lm, and the tensors such a model must have."""

import math
from collections.abc import Sequence
from typing import Any

from plimsoll.engine.gguf_header import GgufError, Header, Tensor
from plimsoll.engine.gguf_tokenizer import Vocabulary

_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_TOLERANCE = 1e-4  # float32 arithmetic of the converters against double here
_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def build_config(header: Header, vocabulary: Vocabulary) -> dict[str, Any]:
    """What mlx-lm's ``llama`` needs to know, without ``rope_scaling`` from a tensor and without ``quantization``.

    Raises:
        GgufError: another architecture, or something in it that mlx-lm's ``llama`` does not do.

    """
    architecture = header.text("general.architecture")
    if architecture != "llama":
        raise GgufError(f"the architecture {architecture[:40]!r} is not supported (llama is)")
    if header.integer("llama.expert_count", 0):
        raise GgufError("the model is a mixture of experts (llama.expert_count), which is not supported")
    if (parts := header.integer("split.count", 1)) > 1:
        raise GgufError(f"the file is one of {parts} parts: join them first with llama-gguf-split --merge")
    hidden, heads = (
        header.integer("llama.embedding_length", least=1),
        header.integer("llama.attention.head_count", least=1),
    )
    head_dim = header.integer("llama.attention.key_length", hidden // heads, least=2)
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if (length := header.integer(key, head_dim)) != head_dim:
            raise GgufError(f"{key} is {length} and a head has {head_dim} values: that difference is not supported")
    layers = header.integer("llama.block_count", least=1)
    if layers > len(header.tensors):
        raise GgufError(f"llama.block_count is {layers} and the file has {len(header.tensors)} tensors")
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": header.integer("llama.feed_forward_length", least=1),
        "num_attention_heads": heads,
        "num_key_value_heads": header.integer("llama.attention.head_count_kv", heads, least=1),
        "head_dim": head_dim,
        "rms_norm_eps": header.number("llama.attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": header.integer("llama.context_length", least=1),
        "rope_theta": header.number("llama.rope.freq_base", 10000.0),
        # llama.cpp's converter permutes q and k for rotating neighbours instead of halves.
        "rope_traditional": True,
        "rope_scaling": _linear_scaling(header),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "vocab_size": header.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in header.tensors else 0,
        "bos_token_id": vocabulary.bos,
        "eos_token_id": vocabulary.end_ids or None,
    }
    return {key: value for key, value in config.items() if value is not None}


def name_tensors(header: Header, config: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors under mlx-lm's names.

    Raises:
        GgufError: a tensor is missing, has the wrong shape, or is none of a Llama model's.

    """
    wanted = _expected_shapes(config)
    names = {name: renamed for name in header.tensors if (renamed := _rename(name)) in wanted}
    for name in header.tensors:
        if name not in names and name != "rope_freqs.weight":
            raise GgufError(f"the tensor {name[:80]!r} is not part of a Llama model that mlx-lm can run")
    found = {renamed: header.tensors[name] for name, renamed in names.items()}
    for name, shape in wanted.items():
        if name not in found:
            raise GgufError(f"the tensor for {name} is missing")
        if found[name].shape != shape:
            raise GgufError(f"the tensor {found[name].name!r} has the shape {found[name].shape}, expected {shape}")
    if config["vocab_size"] < len(header.list_of("tokenizer.ggml.tokens", str)):
        raise GgufError(f"the vocabulary is larger than token_embd.weight with its {config['vocab_size']} rows")
    return found


def llama3_scaling(factors: Sequence[float], config: dict[str, Any]) -> dict[str, Any] | None:
    """``rope_scaling`` out of the divisors that ``rope_freqs.weight`` holds, ``head_dim / 2`` of them.

    The formula is the one of Llama 3.1 (``rope_type`` ``llama3`` in transformers); it is computed again from the
    factor found and must give the same numbers.

    Raises:
        GgufError: the numbers come from another formula.

    """
    factor = max(factors, default=1.0)
    if all(value == 1.0 for value in factors):
        return None
    if not 0 < factor < math.inf:
        raise GgufError(f"rope_freqs.weight has {factor} as its largest number, expected one above 0")
    expected = _llama3_divisors(factor, config)
    if len(factors) != len(expected) or not all(
        math.isclose(value, want, rel_tol=_TOLERANCE) for value, want in zip(factors, expected, strict=True)
    ):
        raise GgufError("rope_freqs.weight does not follow the llama3 formula, the only one that is supported")
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}


def _llama3_divisors(factor: float, config: dict[str, Any]) -> list[float]:
    low, high, context = _LLAMA3.values()
    dims = config["head_dim"]
    divisors = []
    for index in range(0, dims, 2):
        wavelength = 2 * math.pi * config["rope_theta"] ** (index / dims)
        smooth = (context / wavelength - low) / (high - low)
        share = min(max(smooth, 0.0), 1.0)
        divisors.append(1 / ((1 - share) / factor + share))
    return divisors


def _linear_scaling(header: Header) -> dict[str, Any] | None:
    kind = header.text("llama.rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind != "linear":
        raise GgufError(f"rope scaling of type {kind[:40]!r} is not supported (none and linear are)")
    return {"type": "linear", "factor": header.number("llama.rope.scaling.factor")}


def _rename(name: str) -> str:
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    match name.split("."):
        case ["blk", number, part, "weight"] if part in _LAYER:
            return f"model.layers.{number}.{_LAYER[part]}.weight"
    return ""


def _expected_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_norm": (hidden,),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {
        f"model.layers.{number}.{_LAYER[part]}.weight": shape
        for number in range(config["num_hidden_layers"])
        for part, shape in layer.items()
    }
    shapes |= {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    return shapes if config["tie_word_embeddings"] else shapes | {"lm_head.weight": (vocab, hidden)}
