"""Serves models whose caches mlx-lm can't batch: their requests run one after another, through the same generator."""

from typing import Any

from mlx_lm.models.cache import make_prompt_cache

from plimsoll.engine.chat.generator import Generator


class OneAtATime(Generator):
    """Takes one row at a time, whose caches stay as the model made them. The engine's ``max_batch`` must be 1."""

    def insert_segments(self, segments: Any, max_tokens: Any = None, caches: Any = None, **options: Any) -> list[int]:
        given = caches or [None]
        alone = [[_alone(cache) for cache in one or make_prompt_cache(self.model)] for one in given]
        uids: list[int] = super().insert_segments(segments, max_tokens, alone, **options)
        return uids


class _Alone:
    """What a batch asks of its caches, where the batch is one row."""

    @classmethod
    def merge(cls, caches: list[Any]) -> Any:
        (one,) = caches
        return one

    def extract(self, _index: int) -> Any:
        return self

    def filter(self, _rows: list[int]) -> None:
        """The row stays, or the batch drops all its caches."""


def _alone(cache: Any) -> Any:
    kind = type(cache)
    cache.__class__ = type(kind.__name__, (_Alone, kind), {})
    return cache
