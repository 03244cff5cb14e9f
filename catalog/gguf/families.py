"""The model families that a GGUF file may hold: how their parts are called there and in mlx-lm, and their shapes."""

from typing import Any, NamedTuple

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
_EXPERTS = {
    "ffn_gate_inp": "gate",
    "ffn_gate_exps": "switch_mlp.gate_proj",
    "ffn_up_exps": "switch_mlp.up_proj",
    "ffn_down_exps": "switch_mlp.down_proj",
}
_SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}


def _with_experts(layer: dict[str, str], block: str) -> dict[str, str]:
    """The layer with experts, which both formats keep stacked, in the place of its one feed-forward part."""
    kept = {part: renamed for part, renamed in layer.items() if not renamed.startswith("mlp.")}
    return kept | {part: f"{block}.{renamed}" for part, renamed in _EXPERTS.items()}


class Family(NamedTuple):
    """One architecture.

    ``layer``: the name of each part of a layer in the file and in mlx-lm. ``biases``: the parts that have one as well.
    ``rope_traditional``: llama.cpp's converter permutes the family's q and k for rotating neighbours instead of halves.
    ``norm_shift``: what the converter adds to the norms' weights, and mlx-lm adds itself.
    ``rope_scalings``: the types of rope scaling that mlx-lm's model of the family does.
    ``experts``: what mlx-lm calls their number; empty where there are none.
    """

    model_type: str
    architecture: str
    layer: dict[str, str]
    biases: tuple[str, ...] = ()
    rope_traditional: bool = False
    norm_shift: float = 0.0
    rope_scalings: tuple[str, ...] = ("linear",)
    experts: str = ""


_ALL_SCALINGS = ("linear", "yarn")

FAMILIES = {
    # Mistral's models have Llama's architecture, and its name in GGUF.
    "llama": Family("llama", "LlamaForCausalLM", _LAYER, rope_traditional=True, rope_scalings=_ALL_SCALINGS),
    "qwen2": Family(
        "qwen2", "Qwen2ForCausalLM", _LAYER, biases=("attn_q", "attn_k", "attn_v"), rope_scalings=_ALL_SCALINGS
    ),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", _LAYER | _HEAD_NORMS, rope_scalings=_ALL_SCALINGS),
    "qwen2moe": Family(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        _with_experts(_LAYER, "mlp") | _SHARED_EXPERT,
        biases=("attn_q", "attn_k", "attn_v"),
        rope_scalings=(),
        experts="num_experts",
    ),
    "qwen3moe": Family(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        _with_experts(_LAYER | _HEAD_NORMS, "mlp"),
        rope_scalings=(),
        experts="num_experts",
    ),
    "gemma3": Family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        {
            **(_LAYER | _HEAD_NORMS),
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
        norm_shift=1.0,
    ),
    "phi3": Family(
        "phi3",
        "Phi3ForCausalLM",
        {
            "attn_norm": "input_layernorm",
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
    ),
}

MIXTRAL = Family(
    "mixtral",
    "MixtralForCausalLM",
    _with_experts(_LAYER, "block_sparse_moe"),
    rope_traditional=True,
    rope_scalings=(),
    experts="num_local_experts",
)
"""Has Llama's name in GGUF, and experts."""


def expected_shapes(family: Family, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that a model of ``config`` has, under mlx-lm's names."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    is_fused = "attn_qkv" in family.layer
    experts, of_expert = config.get(family.experts, 0), config.get("moe_intermediate_size", inner)
    shared = config.get("shared_expert_intermediate_size", inner)
    of_part: dict[str, tuple[int, ...]] = {
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_qkv": (queries + 2 * keys, hidden),
        "attn_output": (hidden, queries),
        "attn_q_norm": (config["head_dim"],),
        "attn_k_norm": (config["head_dim"],),
        "ffn_gate": (inner, hidden),
        "ffn_up": (2 * inner if is_fused else inner, hidden),
        "ffn_down": (hidden, inner),
        "ffn_gate_inp": (experts, hidden),
        "ffn_gate_exps": (experts, of_expert, hidden),
        "ffn_up_exps": (experts, of_expert, hidden),
        "ffn_down_exps": (experts, hidden, of_expert),
        "ffn_gate_inp_shexp": (1, hidden),
        "ffn_gate_shexp": (shared, hidden),
        "ffn_up_shexp": (shared, hidden),
        "ffn_down_shexp": (hidden, shared),
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(config["num_hidden_layers"]):
        for part, renamed in family.layer.items():
            shapes[f"model.layers.{number}.{renamed}.weight"] = of_part.get(part, (hidden,))
        for part in family.biases:
            shapes[f"model.layers.{number}.{family.layer[part]}.bias"] = of_part[part][:1]
    shapes |= {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    return shapes if config["tie_word_embeddings"] else shapes | {"lm_head.weight": (vocab, hidden)}
