"""Every use of a private name of mlx-lm, under a public name, and the check that the installed version has them all.

mlx-lm is pinned to ``TESTED``: its private names may change with any release. The rest of the engine imports the
classes and functions below; ``tests/test_house.py`` holds that nobody else spells such a name.
"""

import importlib
import inspect
import sys
from collections import deque
from typing import Any, Self, cast

import mlx.core as mx
import mlx_lm
from mlx_lm.generate import BatchGenerator, GenerationBatch, PromptProcessingBatch
from mlx_lm.models.cache import RotatingKVCache
from mlx_lm.tokenizer_utils import TokenizerWrapper

TESTED = "0.32.2"

# By its name: ``mlx_lm.generate`` is a function, too, which hides the module.
_upstream: Any = importlib.import_module("mlx_lm.generate")

_PRIVATE: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (_upstream, ("_merge_caches",)),
    (GenerationBatch, ("_step",)),
    (PromptProcessingBatch, ("_copy",)),
    (BatchGenerator, ("_make_batch",)),
    (RotatingKVCache, ("_temporal_order",)),
)
# Attributes that the class sets in ``__init__``.
_SET_BY_INIT: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (
        GenerationBatch,
        (
            *("_current_tokens", "_current_logprobs", "_next_tokens", "_next_logprobs"),
            *("_num_tokens", "_matchers", "_token_context"),
        ),
    ),
    (BatchGenerator, ("_generation_batch", "_prompt_batch", "_unprocessed_sequences", "_currently_processing")),
    (TokenizerWrapper, ("_tokenizer", "_chat_template")),
)


class MlxLmDoesNotFit(RuntimeError):
    """The installed mlx-lm lacks something that the engine uses."""


def check_version(installed: str = mlx_lm.__version__) -> None:
    """Raise ``MlxLmDoesNotFit`` where a private name is missing; warn where only the version is another one.

    Looks at classes and code objects only, so it costs less than a millisecond.
    """
    if missing := missing_names():
        raise MlxLmDoesNotFit(
            f"Plimsoll was tested with mlx-lm {TESTED}; {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing in mlx-lm {installed}, which is installed. "
            f"Install the tested version: pip install mlx-lm=={TESTED}"
        )
    if installed != TESTED:
        sys.stderr.write(
            f"plimsoll worker: Plimsoll was tested with mlx-lm {TESTED}, and {installed} is installed: it has every "
            "name that Plimsoll uses, but nobody has tested the two together.\n"
        )


def missing_names() -> list[str]:
    """Private names that the engine uses and the installed mlx-lm lacks, such as ``GenerationBatch._step``."""
    missing = [(owner, name) for owner, names in _PRIVATE for name in names if not hasattr(owner, name)]
    for owner, names in _SET_BY_INIT:
        set_here = inspect.unwrap(owner.__init__).__code__.co_names
        missing += [(owner, name) for name in names if name not in set_here]
    return [f"{owner.__name__.rpartition('.')[2]}.{name}" for owner, name in missing]


class DecodingBatch(GenerationBatch):  # type: ignore[misc] # mlx-lm is untyped
    """The rows that decode. ``step`` makes one forward pass; mlx-lm calls it at the end of ``__init__``, too.

    Tokens have shape (rows,), log-probabilities (vocabulary,) each.
    """

    _current_tokens: Any
    _next_tokens: Any
    _current_logprobs: list[mx.array]
    _next_logprobs: list[mx.array]

    def step(self) -> tuple[list[int], list[mx.array]]:
        """The tokens of the pass before and their log-probabilities, while the next pass begins."""
        return cast("tuple[list[int], list[mx.array]]", super()._step())

    def _step(self) -> tuple[list[int], list[mx.array]]:
        return self.step()

    @property
    def next_tokens(self) -> Any:
        """What the pass under way chooses; None while there are no rows."""
        return self._next_tokens

    @property
    def next_logprobs(self) -> list[mx.array]:
        return self._next_logprobs

    @next_logprobs.setter
    def next_logprobs(self, logprobs: list[mx.array]) -> None:
        self._next_logprobs = logprobs

    @property
    def answered(self) -> list[int]:
        """How many tokens each row's answer has."""
        return cast("list[int]", self._num_tokens)

    def begin_pass(self) -> Any:
        """What was chosen last becomes what the next pass reads, which is returned."""
        self._current_tokens, self._current_logprobs = self._next_tokens, self._next_logprobs
        return self._current_tokens

    def end_pass(self, tokens: mx.array, logprobs: list[mx.array]) -> list[mx.array]:
        """Keep what the pass chooses; returns the log-probabilities of the tokens that it has read."""
        self._next_tokens, self._next_logprobs = tokens, logprobs
        return self._current_logprobs

    def count_token(self, row: int, token: int) -> str | None:
        """Count one more token of the row's answer; why the answer ends with it, if it does."""
        self._num_tokens[row] += 1
        if self._matchers[row].advance(token):
            return "stop"
        return "length" if self._num_tokens[row] >= self.max_tokens[row] else None

    def context(self, row: int, newest: mx.array) -> mx.array:
        """All tokens of the row with the ``newest`` one, of shape (1,), for its logits processors."""
        return cast("mx.array", self._token_context[row].update_and_fetch(newest))


class ReadingBatch(PromptProcessingBatch):  # type: ignore[misc] # mlx-lm is untyped
    """The rows whose prompts are read."""

    def copied(self) -> Self:
        """A copy of the batch, its KV caches included; mlx-lm splits a batch with it."""
        return cast("Self", super()._copy())

    def _copy(self) -> Self:
        return self.copied()


class OpenGenerator(BatchGenerator):  # type: ignore[misc] # mlx-lm is untyped
    """mlx-lm's generator, whose two batches and whose line of new rows can be seen and replaced."""

    _unprocessed_sequences: "deque[Any]"
    _currently_processing: list[Any]

    @property
    def decoding(self) -> Any:
        """The rows that decode."""
        return self._generation_batch

    @decoding.setter
    def decoding(self, batch: Any) -> None:
        self._generation_batch = batch

    @property
    def reading(self) -> Any:
        """The rows whose prompts are read."""
        return self._prompt_batch

    @reading.setter
    def reading(self, batch: Any) -> None:
        self._prompt_batch = batch

    @property
    def new_rows(self) -> "deque[Any]":
        """Rows that were inserted and are in no batch yet: tuples that begin with uid, segments, max_tokens, cache."""
        return self._unprocessed_sequences

    @new_rows.setter
    def new_rows(self, rows: "deque[Any]") -> None:
        self._unprocessed_sequences = rows

    @property
    def reading_progress(self) -> list[Any]:
        """For each row of ``reading`` the segments that are left, and how many tokens of how many were read."""
        return self._currently_processing

    @reading_progress.setter
    def reading_progress(self, progress: list[Any]) -> None:
        self._currently_processing = progress

    def make_batch(self, rows: int) -> Any:
        """The batch of the next so many new rows, which leave ``new_rows``."""
        return super()._make_batch(rows)

    def _make_batch(self, n: int) -> Any:
        return self.make_batch(n)


def merge_caches(caches: list[list[Any]]) -> list[Any]:
    """One batch's KV caches, layer by layer, of those of its rows. Raises ``ValueError`` where they can't be merged."""
    return cast("list[Any]", _upstream._merge_caches(caches))  # noqa: SLF001 - this module is the place


def temporal_order(cache: RotatingKVCache, part: mx.array) -> mx.array:
    """Keys or values of a sliding window, of shape (batch, heads, tokens, size), with the oldest token first."""
    return cast("mx.array", cache._temporal_order(part))  # noqa: SLF001 - as above


def bare_tokenizer(tokenizer: TokenizerWrapper) -> Any:
    """The transformers tokenizer inside of mlx-lm's wrapper."""
    return tokenizer._tokenizer  # noqa: SLF001 - as above


def has_own_template(tokenizer: TokenizerWrapper) -> bool:
    """Whether mlx-lm renders the chat with Python code of its own instead of the model's template."""
    return tokenizer._chat_template is not None  # noqa: SLF001 - as above


def set_template(tokenizer: TokenizerWrapper, source: str) -> None:
    """Have the chat rendered by this Jinja template instead of the model's."""
    tokenizer._tokenizer.chat_template = source  # noqa: SLF001 - as above
    tokenizer._chat_template = None  # noqa: SLF001 - as above
    tokenizer.has_chat_template = True
