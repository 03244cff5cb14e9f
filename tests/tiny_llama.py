"""A random Llama of 200 kB with a real tokenizer: everything of a model but the sense.

Run it in a child process where MLX must not be imported: ``python tests/tiny_llama.py FOLDER``.
"""

import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
TEXT = """The quick brown fox jumps over the lazy dog. A ship lies deep in the water when her holds are full,
and the line on her side tells how much more she may carry. Съешь же ещё этих мягких французских булок, да выпей чаю.
Быстрая бурая лиса прыгает через ленивую собаку. 🚢⚓🌊 Ships and seas 🌊, grüße, naïve café, 水线, 船は海を行く。
def load(ship): return [cargo for cargo in ship if cargo.weight < 1024]  # 0123456789
user: hello, who are you? assistant: I am a small model. system: be brief and kind."""
TEMPLATE = """{% for message in messages %}{% if message['role'] not in ['system', 'user', 'assistant'] %}\
{{ raise_exception('no role ' + message['role']) }}{% endif %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def build(folder: Path, **different: Any) -> Path:
    """Write the model's folder: float32 weights from a fixed seed, byte-level BPE, a ChatML template.

    ``different`` replaces keys of its config.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size, eos = write_tokenizer(folder)
    config = {**CONFIG, "vocab_size": vocab_size, "eos_token_id": eos, **different}
    (folder / "config.json").write_text(json.dumps(config))
    mx.random.seed(7)
    model = Model(ModelArgs.from_dict(config))
    # Wide weights: with small ones every next token is nearly as likely as the other.
    weights = {
        name: mx.random.normal(array.shape) * 0.3 if array.ndim > 1 else mx.ones(array.shape)
        for name, array in tree_flatten(model.parameters())
    }
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return folder


def write_tokenizer(folder: Path) -> tuple[int, int]:
    """The tokenizer's files; vocabulary size and the end-of-text token's id."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(text, special=True, normalized=False) for text in ("<|im_start|>", "<|im_end|>")]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=1,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|im_end|>",
                "chat_template": TEMPLATE,
                "clean_up_tokenization_spaces": False,
            }
        )
    )
    return tokenizer.get_vocab_size(), tokenizer.token_to_id("<|im_end|>")


if __name__ == "__main__":
    build(Path(sys.argv[1]))
