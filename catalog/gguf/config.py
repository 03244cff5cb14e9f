"""The metadata of a GGUF file -> ``config.json`` for mlx-lm, and the tensors under the names that they have there."""

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from plimsoll.catalog.gguf.families import FAMILIES, MIXTRAL, Family, expected_shapes
from plimsoll.catalog.gguf.reader import GgufError, Header, Tensor
from plimsoll.catalog.gguf.tokenizer import Vocabulary

_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_TOLERANCE = 1e-4  # float32 arithmetic of the converters against double here
_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def build_config(header: Header, vocabulary: Vocabulary) -> dict[str, Any]:
    """What mlx-lm needs to know of the model, without what its tensors say of rope and without ``quantization``.

    Raises:
        GgufError: another architecture, or something in it that mlx-lm's model of it does not do.

    """
    name = header.text("general.architecture")
    if name not in FAMILIES:
        raise GgufError(f"the architecture {name[:40]!r} is not supported ({', '.join(FAMILIES)} are)")
    family = family_of(header)
    if header.integer(f"{name}.expert_count", 0) and not family.experts:
        raise GgufError(
            f"the model is a mixture of experts ({name}.expert_count): of these llama, qwen2moe and qwen3moe are known"
        )
    hidden, heads = (
        header.integer(f"{name}.embedding_length", least=1),
        header.integer(f"{name}.attention.head_count", least=1),
    )
    head_dim = header.integer(f"{name}.attention.key_length", hidden // heads, least=2)
    for key in (f"{name}.attention.value_length", f"{name}.rope.dimension_count"):
        if (length := header.integer(key, head_dim)) != head_dim:
            raise GgufError(f"{key} is {length} and a head has {head_dim} values: that difference is not supported")
    layers = header.integer(f"{name}.block_count", least=1)
    if layers > len(header.tensors):
        raise GgufError(f"{name}.block_count is {layers} and the file has {len(header.tensors)} tensors")
    config = {
        "model_type": family.model_type,
        "architectures": [family.architecture],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": header.integer(f"{name}.feed_forward_length", least=1),
        "num_attention_heads": heads,
        "num_key_value_heads": header.integer(f"{name}.attention.head_count_kv", heads, least=1),
        "head_dim": head_dim,
        "rms_norm_eps": header.number(f"{name}.attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": header.integer(f"{name}.context_length", least=1),
        "rope_theta": header.number(f"{name}.rope.freq_base", 1_000_000.0 if name == "gemma3" else 10000.0),
        "rope_traditional": family.rope_traditional,
        "rope_scaling": _scaling(header, name, family),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "vocab_size": header.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in header.tensors else 0,
        "bos_token_id": vocabulary.bos,
        "eos_token_id": vocabulary.end_ids or None,
        **(_gemma3(header, hidden, heads, head_dim, layers) if name == "gemma3" else {}),
    }
    if family.experts:
        config |= _experts(header, name, family, config)
    return {key: value for key, value in config.items() if value is not None}


def family_of(header: Header) -> Family:
    """The family of a file. Raises ``KeyError`` for one that ``build_config`` refuses."""
    name = header.text("general.architecture")
    return MIXTRAL if name == "llama" and header.integer("llama.expert_count", 0) else FAMILIES[name]


def _experts(header: Header, name: str, family: Family, config: dict[str, Any]) -> dict[str, Any]:
    """How many experts there are and how many see a token; llama.cpp has the rest in its code."""
    used = header.integer(f"{name}.expert_used_count", least=1)
    experts = header.integer(f"{name}.expert_count", least=used)
    told = {family.experts: experts, "num_experts_per_tok": used}
    if family.model_type in _HEADS_OF_HIDDEN:
        hidden, heads, head_dim = (config[key] for key in ("hidden_size", "num_attention_heads", "head_dim"))
        if head_dim * heads != hidden:
            raise GgufError(f"a head has {head_dim} values: mlx-lm's {family.model_type} has {hidden} / {heads}")
    if family is MIXTRAL:
        return told
    told["moe_intermediate_size"] = header.integer(f"{name}.expert_feed_forward_length", least=1)
    if name == "qwen2moe":
        if config["tie_word_embeddings"]:
            raise GgufError("the tensor output.weight is missing, which mlx-lm's qwen2_moe needs")
        key = f"{name}.expert_shared_feed_forward_length"
        return told | {"shared_expert_intermediate_size": header.integer(key, least=1)}
    return told | {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}


# mlx-lm's model of these knows no size of a head but this one.
_HEADS_OF_HIDDEN = ("mixtral", "qwen2_moe")
_GEMMA3_27B_LAYERS = 62


def _gemma3(header: Header, hidden: int, heads: int, head_dim: int, layers: int) -> dict[str, Any]:
    """Sliding windows in five of six layers; llama.cpp has the same numbers in its code."""
    return {
        "sliding_window": header.integer("gemma3.attention.sliding_window", 512, least=1),
        "sliding_window_pattern": 6,
        "rope_local_base_freq": header.number("gemma3.rope.freq_base_swa", 10000.0),
        # Only the largest model scales its attention by something else than its heads' size.
        "query_pre_attn_scalar": hidden / heads if layers == _GEMMA3_27B_LAYERS else head_dim,
    }


ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def name_tensors(header: Header, config: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors under mlx-lm's names.

    Raises:
        GgufError: a tensor is missing, has the wrong shape, or is none of such a model's.

    """
    family = family_of(header)
    wanted = expected_shapes(family, config)
    names = {name: renamed for name in header.tensors if (renamed := _rename(name, family)) in wanted}
    for name in header.tensors:
        if name not in names and name not in ROPE_TENSORS:
            raise GgufError(f"the tensor {name[:80]!r} is not part of a {family.model_type} model that mlx-lm can run")
    found = {renamed: header.tensors[name] for name, renamed in names.items()}
    for name, shape in wanted.items():
        if name not in found:
            raise GgufError(f"the tensor for {name} is missing")
        if shape == (1, *found[name].shape):  # llama.cpp's converter writes one row without its dimension
            found[name] = msgspec.structs.replace(found[name], shape=shape)
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


def _scaling(header: Header, name: str, family: Family) -> dict[str, Any] | None:
    """``rope_scaling`` out of the metadata. YaRN has the same formula and defaults in llama.cpp and in mlx-lm."""
    kind = header.text(f"{name}.rope.scaling.type", "none")
    if kind == "none" or (name == "phi3" and "rope_factors_long.weight" in header.tensors):
        return None
    if kind not in family.rope_scalings:
        known = " and ".join(("none", *family.rope_scalings))
        raise GgufError(f"rope scaling of type {kind[:40]!r} is not supported for {name} ({known} are)")
    key = f"{name}.rope.scaling"
    factor = header.number(f"{key}.factor")
    if kind == "linear":
        return {"type": "linear", "factor": factor}
    for part in ("attn_factor", "yarn_ext_factor", "yarn_attn_factor"):
        if (value := header.number(f"{key}.{part}", 1.0)) != 1:
            raise GgufError(f"{key}.{part} is {value:g}: another one than 1 is not supported")
    # llama.cpp takes the betas of a file for few architectures and 32 and 1 for these; the file has the model's own.
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": header.integer(f"{key}.original_context_length", least=1),
        "beta_fast": header.number(f"{key}.yarn_beta_fast", 32.0),
        "beta_slow": header.number(f"{key}.yarn_beta_slow", 1.0),
    }


def _rename(name: str, family: Family) -> str:
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    match name.split("."):
        case ["blk", number, part, ("weight" | "bias") as kind] if part in family.layer:
            return f"model.layers.{number}.{family.layer[part]}.{kind}"
    return ""
