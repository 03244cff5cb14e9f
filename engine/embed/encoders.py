"""Models that turn token ids into vectors: BERT encoders, decoders whose states are pooled, and cross encoders."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import mlx.core as mx

from plimsoll.catalog.model_card import scores_documents
from plimsoll.catalog.source import Progress
from plimsoll.engine.embed.pooling import Pooling, Recipe, is_bert, read_recipe
from plimsoll.engine.load.cpu_math import make_cpu_fast
from plimsoll.engine.load.weights import describe_model, on_the_cpu, read_weights
from plimsoll.engine.protocol import EngineOptions, ModelInfo
from plimsoll.errors import ContextTooLong, LoadFailed

if TYPE_CHECKING:
    from plimsoll.engine.embed.bert import Bert, BertConfig

# A cancel waits for one step: 512 tokens of MiniLM take 0.25 s on two cores with OpenBLAS, 3 s without.
_STEP_TOKENS = {"cpu": 512, "gpu": 8192}
_DECODER_CHUNK = {"cpu": 64, "gpu": 512}
_CACHE_STEP = 256  # a cache grows in steps of this many tokens


@dataclass(frozen=True, slots=True)
class Row:
    """One input as token ids; ``types`` has the type of each, and is empty where all are of the first."""

    tokens: list[int]
    types: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)


class Encoder(Protocol):
    """One model. ``read`` runs on the step thread, which also loaded it."""

    info: ModelInfo
    dimensions: int
    recipe: Recipe

    def tokenize(self, text: str) -> list[int]:
        """Token ids with the special ones that the model expects; runs on the reader thread."""

    def room(self, length: int) -> int:
        """How many texts of ``length`` tokens may be read side by side; 0 where memory has no room for one."""

    def read(self, rows: list[Row]) -> Iterator[mx.array | None]:
        """Vectors (rows, dimensions) in float32, not normalised, after any number of None: a pause after each chunk."""


def open_encoder(path: Path, options: EngineOptions, progress: Progress) -> Encoder:
    """The encoder for the model in ``path``. Raises ``LoadFailed``, and what MLX raises on bad files."""
    if scores_documents(path):
        return CrossEncoder(path, options, progress)
    kind = BertEncoder if is_bert(path) else DecoderEncoder
    return kind(path, options, progress)


class BertTower:
    """What an embedding model and a cross encoder of the BERT family have in common: tokenizer, sizes, memory.

    An encoder reads a text whole, for every token sees all the others.
    """

    def __init__(
        self,
        path: Path,
        options: EngineOptions,
        progress: Progress,
        load: "Callable[[Path], tuple[Bert, BertConfig]]",
        recipe: Recipe,
    ) -> None:
        from tokenizers import Tokenizer  # noqa: PLC0415 - transformers would take 1 s and 75 MB

        start = time.monotonic()
        if options.adapter:
            raise LoadFailed("Adapters are for chat models: take the key `adapter` away from this encoder.")
        if not (path / "tokenizer.json").is_file():
            raise LoadFailed(f"{path} has no tokenizer.json, which an encoder needs.")
        if on_the_cpu():
            make_cpu_fast()
        self._tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._model, self._config = load(path)
        read_weights(self._model, path, progress, dequantize=options.dequantize)
        self.recipe = recipe
        most = self._config.positions
        context = min(most, self.recipe.max_tokens or most, options.context or most)
        took = time.monotonic() - start
        self.info = describe_model(self._model, context=context, vocab_size=self._config.vocab_size, load_s=took)
        self._room_bytes = options.kv_bytes

    def tokenize(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def room(self, length: int) -> int:
        rows = _STEP_TOKENS[self.info.device] // length
        if self._room_bytes:
            rows = min(rows, self._room_bytes // self._row_bytes(length))
        # One always: at 512 tokens a large BERT takes 75 MB.
        return max(1, rows)

    def _row_bytes(self, length: int) -> int:
        """Working memory of one text: attention scores, feed-forward and states, with factors measured on MiniLM."""
        config = self._config
        per_token = 1.25 * config.num_attention_heads * length + 5 * config.intermediate_size + 6 * config.hidden_size
        return int(4 * length * per_token)


class BertEncoder(BertTower):
    """An embedding model: the states of a text's tokens are pooled."""

    def __init__(self, path: Path, options: EngineOptions, progress: Progress) -> None:
        from plimsoll.engine.embed.bert import load_bert  # noqa: PLC0415 - only for models of this kind

        super().__init__(path, options, progress, load_bert, read_recipe(path, "mean"))
        self.dimensions = self._config.hidden_size

    def read(self, rows: list[Row]) -> Iterator[mx.array | None]:
        tokens, lengths = _padded([row.tokens for row in rows])
        states = self._model(tokens, lengths)
        yield _pooled(self.recipe.pooling, states, lengths, 0)


class CrossEncoder(BertTower):
    """A model that reads a query together with a document; its vectors are one number, the document's score."""

    dimensions = 1

    def __init__(self, path: Path, options: EngineOptions, progress: Progress) -> None:
        from plimsoll.engine.embed.cross import load_scorer  # noqa: PLC0415 - only for models of this kind

        super().__init__(path, options, progress, load_scorer, Recipe("cls", normalize=False))
        self._special = int(self._tokenizer.num_special_tokens_to_add(is_pair=True))
        if self._config.has_types and max(self._tokenizer.encode("a", "a").type_ids) >= self._config.type_vocab_size:
            known = self._config.type_vocab_size
            raise LoadFailed(f"The tokenizer in {path} has more types of tokens than the {known} of the model.")

    def pairs(self, query: str, documents: Iterator[str]) -> Iterator[Row]:
        """A row for each document, in the form that the tokenizer gives pairs; a document that is too long is cut.

        Raises ``ContextTooLong`` for a query that leaves no room for a document.
        """
        room = self.info.context - self._special
        asked = self._tokenizer.encode(query, add_special_tokens=False)
        if len(asked.ids) >= room:
            raise ContextTooLong(
                f"The query leaves no room for a document: it has at least {len(asked.ids)} tokens, and this model "
                f"takes {room} for both together. Shorten the query.",
                param="query",
            )
        for document in documents:
            answer = self._tokenizer.encode(document, add_special_tokens=False)
            answer.truncate(room - len(asked.ids))
            pair = self._tokenizer.post_process(asked, answer)
            yield Row(pair.ids, pair.type_ids if self._config.has_types else [])

    def read(self, rows: list[Row]) -> Iterator[mx.array | None]:
        tokens, lengths = _padded([row.tokens for row in rows])
        types, _ = _padded([row.types or [0] * len(row) for row in rows])
        yield self._model.score(tokens, lengths, types)


class DecoderEncoder:
    """A decoder reads a text in chunks, keeping keys and values: memory and pauses stay bounded for long ones."""

    def __init__(self, path: Path, options: EngineOptions, progress: Progress) -> None:
        from mlx_lm.models.cache import make_prompt_cache  # noqa: PLC0415 - slow, and BERT has no need

        from plimsoll.engine.chat.kv_measure import measure  # noqa: PLC0415 - the same
        from plimsoll.engine.load.loading import load  # noqa: PLC0415 - the same

        recipe = read_recipe(path, "last")
        loaded = load(path, options, progress)
        self._states: Any = getattr(loaded.model, "model", None)
        self._make_cache: Callable[[], list[Any]] = lambda: list(make_prompt_cache(loaded.model))
        self._tokenizer = loaded.tokenizer
        self.dimensions = self._probe(path)
        self.recipe = recipe
        context = min(loaded.info.context, recipe.max_tokens or loaded.info.context)
        self.info = describe_model(
            loaded.model, context=context, vocab_size=loaded.info.vocab_size, load_s=loaded.info.load_s
        )
        self._chunk = options.prefill_chunk or _DECODER_CHUNK[self.info.device]
        self._cost = measure(loaded.model, self._chunk)
        self._room_bytes = options.kv_bytes
        mx.clear_cache()

    def tokenize(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text))

    def room(self, length: int) -> int:
        rows = max(1, _STEP_TOKENS[self.info.device] // min(length, self._chunk))
        if self._room_bytes:
            rows = min(rows, self._room_bytes // self._cost.sequence_bytes(length + _CACHE_STEP))
        return rows

    def read(self, rows: list[Row]) -> Iterator[mx.array | None]:
        # Padding comes after the text, where a causal model does not see it: no mask is needed.
        tokens, lengths = _padded([row.tokens for row in rows])
        cache = self._make_cache()
        vectors = mx.zeros((len(rows), self.dimensions))
        for start in range(0, tokens.shape[1], self._chunk):
            if start:
                yield None
            states = self._states(tokens[:, start : start + self._chunk], cache=cache)
            vectors = vectors + _pooled(self.recipe.pooling, states, lengths, start)
            mx.eval(vectors, [layer.state for layer in cache])
        yield vectors

    def _probe(self, path: Path) -> int:
        """The size of a vector, seen on one token."""
        try:
            states = self._states(mx.array([[0]]), cache=self._make_cache())
            _, _, size = states.shape
        except (TypeError, ValueError, AttributeError) as error:
            raise LoadFailed(f"The model in {path} does not show its states, so it can't make embeddings.") from error
        return int(size)


def _padded(rows: list[list[int]]) -> tuple[mx.array, mx.array]:
    """Token ids (rows, longest), zeros after the end of each, and the lengths."""
    longest = max(map(len, rows))
    return mx.array([row + [0] * (longest - len(row)) for row in rows]), mx.array([len(row) for row in rows])


def _pooled(pooling: Pooling, states: mx.array, lengths: mx.array, start: int) -> mx.array:
    """What the states of the tokens from ``start`` on add to the vectors, in float32."""
    positions = mx.arange(start, start + states.shape[1])[None]
    ends = lengths[:, None]
    match pooling:
        case "mean":
            weights = (positions < ends) / ends
        case "cls":
            weights = mx.broadcast_to(positions == 0, (states.shape[0], states.shape[1]))
        case "last":
            weights = positions == ends - 1
    # A sum and not a product: what padding computes may be anything but NaN.
    return (weights.astype(mx.float32)[..., None] * states.astype(mx.float32)).sum(axis=1)
