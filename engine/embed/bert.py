"""A BERT encoder (Devlin et al., https://arxiv.org/abs/1810.04805), as sentence encoders of that family use it.

RoBERTa and XLM-RoBERTa are the same but for their positions, which begin behind the padding token's id.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
from mlx import nn

from plimsoll.errors import LoadFailed

_FAMILIES = ("Bert", "Roberta", "XLMRoberta")
_ARCHITECTURES = frozenset(
    f"{family}{kind}" for family in _FAMILIES for kind in ("Model", "ForMaskedLM", "ForPreTraining")
)
_ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "gelu": nn.gelu,
    "gelu_new": nn.gelu_approx,
    "gelu_pytorch_tanh": nn.gelu_approx,
    "relu": nn.relu,
}
# What the checkpoints hold besides the encoder.
_UNUSED = ("pooler.", "cls.", "lm_head.", "embeddings.position_ids", "embeddings.token_type_ids")


class BertConfig(msgspec.Struct, frozen=True):
    """The keys of config.json that matter; the rest is about training."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    position_embedding_type: str | None = "absolute"
    architectures: tuple[str, ...] = ("BertModel",)
    quantization: dict[str, Any] | None = None
    model_type: str = "bert"
    pad_token_id: int | None = None

    @property
    def first_position(self) -> int:
        """The row of the table of positions that the first token gets."""
        if self.model_type == "bert":
            return 0
        return (1 if self.pad_token_id is None else self.pad_token_id) + 1

    @property
    def positions(self) -> int:
        """How many tokens an input may have."""
        return self.max_position_embeddings - self.first_position

    @property
    def has_types(self) -> bool:
        """Whether the tokens of a pair's second text are of another type than those of the first."""
        return self.model_type == "bert" and self.type_vocab_size > 1


class Bert(nn.Module):  # type: ignore[misc] # mlx.nn is not typed
    """Token states of right-padded texts. Parameters carry the names that the checkpoints have."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)

    def __call__(self, tokens: mx.array, lengths: mx.array, types: mx.array | None = None) -> mx.array:
        """``tokens`` (rows, length) and how many of each row count -> states (rows, length, hidden size).

        ``types`` has the type of each token; without it all are of the first.
        """
        hidden = self.embeddings(tokens, mx.array([0]) if types is None else types)
        there = mx.arange(tokens.shape[1]) < lengths[:, None]
        lowest = mx.finfo(hidden.dtype).min
        mask = mx.where(there, 0, lowest).astype(hidden.dtype)[:, None, None]
        for layer in self.encoder.layer:
            hidden = layer(hidden, mask)
        return hidden


class _Embeddings(nn.Module):  # type: ignore[misc] # mlx.nn is not typed
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self._first_position = config.first_position

    def __call__(self, tokens: mx.array, types: mx.array) -> mx.array:
        positions = self.position_embeddings(mx.arange(tokens.shape[1]) + self._first_position)
        states = self.word_embeddings(tokens) + positions + self.token_type_embeddings(types)
        normed: mx.array = self.LayerNorm(states)
        return normed


class _Encoder(nn.Module):  # type: ignore[misc] # mlx.nn is not typed
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = [_Layer(config) for _ in range(config.num_hidden_layers)]


class _Layer(nn.Module):  # type: ignore[misc] # mlx.nn is not typed
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.intermediate = Dense(config.hidden_size, config.intermediate_size)
        self.output = _Output(config.intermediate_size, config)
        self._activation = _ACTIVATIONS[config.hidden_act]

    def __call__(self, hidden: mx.array, mask: mx.array) -> mx.array:
        hidden = self.attention(hidden, mask)
        wide = self._activation(self.intermediate.dense(hidden))
        output: mx.array = self.output(wide, hidden)
        return output


class _Attention(nn.Module):  # type: ignore[misc] # mlx.nn is not typed
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.self = _SelfAttention(config)
        self.output = _Output(config.hidden_size, config)

    def __call__(self, hidden: mx.array, mask: mx.array) -> mx.array:
        output: mx.array = self.output(self.self(hidden, mask), hidden)
        return output


class _SelfAttention(nn.Module):  # type: ignore[misc] # mlx.nn is not typed
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.query, self.key, self.value = nn.Linear(size, size), nn.Linear(size, size), nn.Linear(size, size)
        self._heads = config.num_attention_heads

    def __call__(self, hidden: mx.array, mask: mx.array) -> mx.array:
        rows, length, size = hidden.shape
        queries, keys, values = (
            part(hidden).reshape(rows, length, self._heads, -1).transpose(0, 2, 1, 3)
            for part in (self.query, self.key, self.value)
        )
        scale = (size // self._heads) ** -0.5
        mixed = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)
        joined: mx.array = mixed.transpose(0, 2, 1, 3).reshape(rows, length, size)
        return joined


class Dense(nn.Module):  # type: ignore[misc] # mlx.nn is not typed
    """A layer under the name that checkpoints have for it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)


class _Output(nn.Module):  # type: ignore[misc] # mlx.nn is not typed
    """Back to the hidden size, added to what went in, normalised."""

    def __init__(self, inputs: int, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def __call__(self, hidden: mx.array, before: mx.array) -> mx.array:
        normed: mx.array = self.LayerNorm(self.dense(hidden) + before)
        return normed


def load_bert(path: Path) -> tuple[Bert, BertConfig]:
    """The encoder in the folder ``path``; its weights are read when they are evaluated.

    Raises ``LoadFailed`` where config or weights are not those of a BERT encoder.
    """
    config = read_config(path)
    if not _ARCHITECTURES & set(config.architectures):
        raise LoadFailed(f"A BERT model of type {', '.join(config.architectures)} does not make embeddings.")
    model = Bert(config)
    fill(model, path, config, _UNUSED)
    return model, config


def read_config(path: Path) -> BertConfig:
    """Raises ``LoadFailed`` where the model's parts are not those that are known here."""
    try:
        config = msgspec.json.decode((path / "config.json").read_bytes(), type=BertConfig)
    except msgspec.MsgspecError as error:
        raise LoadFailed(f"{path}/config.json is not that of a BERT model: {error}.") from None
    if config.hidden_act not in _ACTIVATIONS or config.position_embedding_type not in ("absolute", None):
        what = f"{config.hidden_act} activations and {config.position_embedding_type} positions"
        raise LoadFailed(f"A BERT model with {what} is not supported.")
    if config.hidden_size % config.num_attention_heads:
        raise LoadFailed(f"{path}/config.json: {config.num_attention_heads} heads do not divide {config.hidden_size}.")
    if config.positions < 1:
        raise LoadFailed(
            f"{path}/config.json: {config.max_position_embeddings} positions leave no room for a text, as the first "
            f"{config.first_position} are not used."
        )
    return config


def fill(model: Bert, path: Path, config: BertConfig, unused: tuple[str, ...]) -> None:
    """Give ``model`` the weights in the folder ``path``, but those whose names begin with one of ``unused``.

    Raises ``LoadFailed`` where others are missing or left over.
    """
    weights: dict[str, mx.array] = {}
    for file in sorted(path.glob("model*.safetensors")):
        loaded: Any = mx.load(str(file))
        weights |= {_name(key): array for key, array in loaded.items()}
    weights = {key: array for key, array in weights.items() if not key.startswith(unused)}
    if config.quantization:
        group_size, bits = config.quantization.get("group_size", 64), config.quantization.get("bits", 4)
        nn.quantize(model, group_size, bits, class_predicate=lambda name, _: f"{name}.scales" in weights)
    try:
        model.load_weights(list(weights.items()))
    except ValueError as error:
        raise LoadFailed(f"The weights in {path} are not those of a BERT encoder: {str(error)[:200]}.") from None
    model.eval()


def _name(key: str) -> str:
    """Checkpoints of models with a head have a prefix, old ones have TensorFlow's names for norms."""
    key = key.removeprefix("bert.").removeprefix("roberta.")
    return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
