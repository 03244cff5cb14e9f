"""A model's share for one rank of a group, by mlx-lm's own ways to split it."""

from typing import Any, Literal

import mlx.core as mx
from mlx import nn
from mlx_lm.utils import dequantize_model

from plimsoll.engine.load.weights import on_the_cpu
from plimsoll.errors import LoadFailed


def split_model(
    model: nn.Module, group: mx.distributed.Group, split: Literal["tensor", "pipeline"], *, dequantize: bool
) -> "Together":
    """Reduce a lazily loaded model to this rank's share. Raises ``LoadFailed`` where mlx-lm can't split it."""
    if on_the_cpu():
        # Before the split, for mlx-lm does not unpack a part of a packed layer; nothing is read yet.
        model.set_dtype(mx.float32)
        if dequantize:
            dequantize_model(model).set_dtype(mx.float32)
    inner: Any = getattr(model, "model", None)
    try:
        if split == "tensor" and hasattr(model, "shard"):
            model.shard(group)
        elif split == "pipeline" and hasattr(inner, "pipeline"):
            inner.pipeline(group)
        else:
            raise LoadFailed(_refusal(model, inner, split))
    except (ValueError, TypeError) as error:
        raise LoadFailed(f"mlx-lm can't split this model over {group.size()} hosts: {error}") from None
    return Together(model, group)


class Together:
    """A model that is called with the first rank's tokens on every rank.

    The other ranks contribute zeros. Their inputs times 0, rather than new zeros, keep the data dependency on their
    last step, which makes every rank exchange data in the same order.
    """

    def __init__(self, model: nn.Module, group: mx.distributed.Group) -> None:
        self._model = model
        self._group = group

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        mine = inputs if self._group.rank() == 0 else inputs * 0
        tokens = mx.distributed.all_sum(mine, group=self._group)
        # At once: the last layers of a pipeline do not use the tokens, so nothing else would start this exchange there.
        mx.async_eval(tokens)  # type: ignore[no-untyped-call]  # its stub has no types
        logits: mx.array = self._model(tokens, cache=cache)
        return logits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _refusal(model: nn.Module, inner: Any, split: str) -> str:
    kind = getattr(model, "model_type", "this type")
    other = "pipeline" if hasattr(inner, "pipeline") else "tensor" if hasattr(model, "shard") else ""
    hint = f"set split: {other}" if other else "serve it by one host, without hosts"
    return f"mlx-lm can't split a model of type {kind} by {split}: {hint}."
