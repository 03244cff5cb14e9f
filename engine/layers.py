"""The KV caches of one row, under the number that the row has on every rank of a group."""

import copy
from typing import Any

from mlx_lm.models.cache import trim_prompt_cache


class Layers(list[Any]):
    """One cache per layer; they hold tokens of row ``uid``, which runs or has run."""

    def __init__(self, layers: list[Any], uid: int) -> None:
        super().__init__(layers)
        self.uid = uid


def beginning_of(layers: list[Any], held: int, wanted: int) -> list[Any]:
    """A copy that holds the first ``wanted`` of ``held`` tokens; arrays are shared, only the rest is copied."""
    copied = copy.deepcopy(layers)
    if held > wanted:
        trim_prompt_cache(copied, held - wanted)
    return copied
