"""Random models of a few hundred kB for benchmarks: ``python ops/bench/tiny_models.py FOLDER`` (it imports MLX).

``FOLDER/tiny`` is a Llama with marks for thoughts and calls, ``FOLDER/hybrid`` an LFM2 with attention and recurrent
layers. Their answers make no sense, and depend on every token before them.
"""

import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import lfm2, llama
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

_TEXT = """The quick brown fox jumps over the lazy dog. A ship lies deep in the water when her holds are full,
and the line on her side tells how much more she may carry. Быстрая бурая лиса прыгает через ленивую собаку. 🚢⚓🌊
def load(ship): return [cargo for cargo in ship if cargo.weight < 1024]  # 0123456789 {"a": [1, 2]}"""
_TEMPLATE = (
    "{% if tools %}TOOLS {{ tools | tojson }} <tool_call>{% endif %}"
    "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}[assistant]"
    "{% if enable_thinking is defined and enable_thinking %}<think>\n"
    "{% elif enable_thinking is defined %}<think>\n\n</think>\n\n{% endif %}"
)
_MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
_SHARED: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
LLAMA = {
    **_SHARED,
    "model_type": "llama",
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
LFM2 = {
    **_SHARED,
    "model_type": "lfm2",
    "num_hidden_layers": 4,
    "norm_eps": 1e-5,
    "conv_bias": False,
    "conv_L_cache": 3,
    "block_dim": 64,
    "block_ff_dim": 128,
    "block_multiple_of": 16,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": False,
    "layer_types": ["conv", "full_attention", "conv", "full_attention"],
}


def build(folder: Path, config: dict[str, Any], module: Any) -> None:
    """Write the folder of one model, with weights from a fixed seed."""
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in _MARKS])
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "chat_template": _TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    eos = tokenizer.token_to_id("<|end|>")
    config = {**config, "vocab_size": tokenizer.get_vocab_size(), "eos_token_id": eos}
    (folder / "config.json").write_text(json.dumps(config))
    mx.random.seed(7)
    model = module.Model(module.ModelArgs.from_dict(config))
    weights = {
        name: mx.random.normal(array.shape) * 0.3 if array.ndim > 1 else mx.ones(array.shape)
        for name, array in tree_flatten(model.parameters())
    }
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})


if __name__ == "__main__":
    build(Path(sys.argv[1]) / "tiny", LLAMA, llama)
    build(Path(sys.argv[1]) / "hybrid", LFM2, lfm2)
