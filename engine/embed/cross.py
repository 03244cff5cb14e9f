"""Cross encoders of the BERT family: an encoder with a head that scores a query together with a document.

The first token's state goes through a dense layer with tanh and then through one that gives the score. BERT has the
dense layer in its pooler, RoBERTa and XLM-RoBERTa have it in the head.
"""

from pathlib import Path

import mlx.core as mx
import msgspec
from mlx import nn

from plimsoll.engine.embed.bert import Bert, BertConfig, Dense, fill, read_config
from plimsoll.errors import LoadFailed

_UNUSED = ("embeddings.position_ids", "embeddings.token_type_ids")


class BertScorer(Bert):
    """BERT with a pooler and a classifier of one label."""

    unused = _UNUSED

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.pooler = Dense(config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, 1)

    def score(self, tokens: mx.array, lengths: mx.array, types: mx.array) -> mx.array:
        """Logits (rows, 1) in float32."""
        first = self(tokens, lengths, types)[:, 0]
        logits: mx.array = self.classifier(mx.tanh(self.pooler.dense(first)))
        return logits.astype(mx.float32)


class RobertaScorer(Bert):
    """RoBERTa or XLM-RoBERTa with a head of one label."""

    # Some checkpoints hold a pooler, which this head does not use.
    unused = (*_UNUSED, "pooler.")

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.classifier = _RobertaHead(config.hidden_size)

    def score(self, tokens: mx.array, lengths: mx.array, types: mx.array) -> mx.array:
        """Logits (rows, 1) in float32."""
        logits: mx.array = self.classifier(self(tokens, lengths, types)[:, 0])
        return logits.astype(mx.float32)


class _RobertaHead(nn.Module):  # type: ignore[misc] # mlx.nn is not typed
    def __init__(self, size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(size, size)
        self.out_proj = nn.Linear(size, 1)

    def __call__(self, state: mx.array) -> mx.array:
        logits: mx.array = self.out_proj(mx.tanh(self.dense(state)))
        return logits


Scorer = BertScorer | RobertaScorer
_SCORERS: dict[str, type[Scorer]] = {
    "BertForSequenceClassification": BertScorer,
    "RobertaForSequenceClassification": RobertaScorer,
    "XLMRobertaForSequenceClassification": RobertaScorer,
}


class _Head(msgspec.Struct, frozen=True):
    """The keys of config.json that say what the head is."""

    architectures: tuple[str, ...]
    id2label: dict[str, object] | None = None
    num_labels: int | None = None


def load_scorer(path: Path) -> tuple[Scorer, BertConfig]:
    """The cross encoder in the folder ``path``; its weights are read when they are evaluated.

    Raises ``LoadFailed`` where its head is not known here or gives more than one score, or the weights are others.
    """
    try:
        head = msgspec.json.decode((path / "config.json").read_bytes(), type=_Head)
    except msgspec.MsgspecError as error:
        raise LoadFailed(f"{path}/config.json is not that of a cross encoder: {error}.") from None
    kind = next((_SCORERS[one] for one in head.architectures if one in _SCORERS), None)
    if kind is None:
        named = ", ".join(head.architectures)[:200]
        raise LoadFailed(f"A cross encoder of type {named} is not supported; supported are {', '.join(_SCORERS)}.")
    # Without either key the weights show whether it is one label.
    labels = len(head.id2label) if head.id2label else head.num_labels
    if labels not in (1, None):
        raise LoadFailed(
            f"The model in {path} gives {labels} scores for each text, so it is a classifier; a cross encoder that "
            "reranks gives one."
        )
    config = read_config(path)
    model = kind(config)
    fill(model, path, config, kind.unused)
    return model, config
