"""The built-in model in shapes that two hosts can split: the same weights, the same answers.

Run it in a child process where MLX must not be imported: ``python ops/bench/split_models.py FOLDER tensor|pipeline``.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import dequantize_model, load_model

from plimsoll import config
from plimsoll.catalog import BUILTIN, default_cache_dir, resolve

_HEAD_DIM = 64
_HEADS, _KV_HEADS = 12, 4
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def build(folder: Path, split: str) -> Path:
    """Write the model's folder, if it is not there; ``split`` says for which way to split it."""
    if not (folder / "config.json").exists():
        source = resolve(BUILTIN, cache_dir=default_cache_dir(config.load()), offline=False, progress=lambda *_: None)
        weights, settings = _dense(source)
        folder.mkdir(parents=True, exist_ok=True)
        weights, changed = (_with_more_heads if split == "tensor" else _as_qwen2)(weights)
        mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
        for name in _TOKENIZER:
            shutil.copy(source / name, folder)
        (folder / "config.json").write_text(json.dumps(settings | changed))
    return folder


def _dense(source: Path) -> tuple[dict[str, mx.array], dict[str, Any]]:
    model, settings = load_model(source, lazy=True)
    model = dequantize_model(model)
    model.set_dtype(mx.float16)
    weights = dict(tree_flatten(model.parameters()))
    return weights, {key: value for key, value in settings.items() if not key.startswith("quantization")}


def _with_more_heads(weights: dict[str, mx.array]) -> tuple[dict[str, mx.array], dict[str, Any]]:
    """12 heads and 4 KV heads where there were 9 and 3; what the new ones say is not listened to."""
    rows = {"q_proj": _HEADS * _HEAD_DIM, "k_proj": _KV_HEADS * _HEAD_DIM, "v_proj": _KV_HEADS * _HEAD_DIM}
    for name, array in weights.items():
        module = name.split(".")[-2]
        if module in rows:
            weights[name] = mx.pad(array, [(0, rows[module] - array.shape[0]), (0, 0)])
        if module == "o_proj":
            weights[name] = mx.pad(array, [(0, 0), (0, _HEADS * _HEAD_DIM - array.shape[1])])
    return weights, {"num_attention_heads": _HEADS, "num_key_value_heads": _KV_HEADS}


def _as_qwen2(weights: dict[str, mx.array]) -> tuple[dict[str, mx.array], dict[str, Any]]:
    """The same architecture but for biases, which are 0; mlx-lm can split it by layers."""
    biases = {
        name.replace("weight", "bias"): mx.zeros(array.shape[:1], array.dtype)
        for name, array in weights.items()
        if name.split(".")[-2] in ("q_proj", "k_proj", "v_proj")
    }
    return weights | biases, {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}


if __name__ == "__main__":
    build(Path(sys.argv[1]), sys.argv[2])
