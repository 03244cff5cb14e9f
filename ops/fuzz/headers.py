"""Broken safetensors headers and model configs: a weight to grant memory by, ``ValueError`` or ``OSError``."""

import json
import struct
from typing import Any

import harness
from mutate import Mutator

from plimsoll.catalog.files import problem
from plimsoll.catalog.weigh import weigh
from plimsoll.memory.load_options import ways_to_load

CONFIG: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "quantization": {"group_size": 64, "bits": 4, "model.layers.0.mlp": {"group_size": 32, "bits": 8}},
    "text_config": {"n_layer": 2, "kv_lora_rank": 0, "qk_rope_head_dim": 8},
}
HEADER: dict[str, Any] = {
    "__metadata__": {"format": "mlx"},
    "model.embed_tokens.weight": {"dtype": "F16", "shape": [8, 4], "data_offsets": [0, 64]},
    "model.layers.0.mlp.weight": {"dtype": "U32", "shape": [4, 2], "data_offsets": [64, 96]},
    "model.layers.0.mlp.scales": {"dtype": "BF16", "shape": [4, 1], "data_offsets": [96, 104]},
    "model.layers.0.mlp.biases": {"dtype": "BF16", "shape": [4, 1], "data_offsets": [104, 112]},
    "model.layers.1.weight": {"dtype": "F32", "shape": [], "data_offsets": [112, 116]},
}
INDEX: dict[str, Any] = {"metadata": {"total_size": 116}, "weight_map": dict.fromkeys(HEADER, "model.safetensors")}
_DATA = b"\0" * 116


def case(mutator: Mutator) -> str:
    """A model's folder with one of its three files broken."""
    rnd, folder = mutator.random, harness.scratch()
    header, config, index = (json.dumps(part).encode() for part in (HEADER, CONFIG, INDEX))
    broken = rnd.choice(("header", "header", "config", "config", "index"))
    match broken:
        case "header":
            header = _break(mutator, HEADER)
        case "config":
            config = _break(mutator, CONFIG)
        case "index":
            index = _break(mutator, INDEX)
    whole = struct.pack("<Q", len(header)) + header + _DATA
    if broken == "header" and rnd.random() < 0.2:
        whole = mutator.bytes(whole, within=rnd.choice((8, 16, None)))
    (folder / "model.safetensors").write_bytes(whole)
    (folder / "config.json").write_bytes(config)
    (folder / "model.safetensors.index.json").write_bytes(index)
    if problem(folder) is not None:
        return "problem"
    try:
        weight = weigh(folder)
    except (ValueError, OSError) as error:
        return harness.refused(str(error))
    bound = 100 * len(whole) * (1 << 16)
    for value in (weight.stored_bytes, weight.float32_bytes, weight.dense_bytes):
        assert 0 <= value <= bound, f"{weight} of a file of {len(whole)} bytes"
    for device in ("cpu", "gpu"):
        ways = ways_to_load(weight, device=device, dequantize="auto", context=None, kv_budget_bytes=None, measured={})
        assert all(need.kv_bytes > 0 and 0 <= need.context < 1 << 32 for need in ways), ways
    return "weighed"


def _break(mutator: Mutator, content: dict[str, Any]) -> bytes:
    rnd = mutator.random
    if rnd.random() < 0.02:
        return mutator.nested_text().encode()
    if rnd.random() < 0.4:
        return mutator.bytes(json.dumps(content).encode())
    return json.dumps(mutator.structure(content), ensure_ascii=rnd.random() < 0.5).encode()


if __name__ == "__main__":
    harness.main("headers", case)
