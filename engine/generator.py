"""Makes mlx-lm's batch generator as this server wants it."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, GenerationBatch, PromptProcessingBatch

from plimsoll.engine.eager_batch import EagerBatch, EagerPrompts
from plimsoll.engine.kv_measure import leaves
from plimsoll.engine.loading import Loaded
from plimsoll.engine.pace import Pace
from plimsoll.engine.weights import on_the_cpu

# Tokens of prompts per step: the first guess while others stream, and what is read at once while nobody does. On a CPU
# passes of 128 to 256 tokens read fastest, and of eight requests that come at once five need not wait for the rest.
_FIRST_CHUNK = {"cpu": 16, "gpu": 128}
_IDLE_CHUNK = {"cpu": 160, "gpu": 1024}


def open_pace(device: str, chunk: int | None) -> Pace:
    """The pace of a device; ``chunk`` is what the configuration wants read at once while others stream."""
    return Pace(first=_FIRST_CHUNK[device], idle=_IDLE_CHUNK[device], fixed=chunk)


class Generator(BatchGenerator):  # type: ignore[misc] # mlx-lm is untyped
    """mlx-lm's generator with its step in two halves, so that a first token need not wait for others' prompts.

    mlx-lm's own step decodes, then lets read prompts join, then reads a chunk of those that come behind; only then are
    the decoded tokens handed out.
    """

    _generation_batch: GenerationBatch
    _prompt_batch: PromptProcessingBatch

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if on_the_cpu():
            self._generation_batch = EagerBatch.empty(self.model, self.sampler)
            self._prompt_batch = EagerPrompts.empty(self.model, self.sampler, self._prompt_batch.prefill_step_size)

    @property
    def answering(self) -> bool:
        """Whether ``decode`` has rows to make a pass for."""
        return len(self._generation_batch) > 0

    @property
    def begins_apart(self) -> bool:
        """Whether ``read`` makes a pass of its own for those that begin."""
        return not isinstance(self._generation_batch, EagerBatch)

    @property
    def newest(self) -> dict[int, int]:
        """The last token of every answer that has one, by its row; waits for the pass that is under way."""
        batch = self._generation_batch
        if isinstance(batch, EagerBatch):
            return batch.newest
        return dict(zip(batch.uids, batch._next_tokens.tolist(), strict=True)) if batch.uids else {}  # noqa: SLF001 - mlx-lm is pinned

    def read(self) -> list[Any]:
        """Read one chunk of every prompt; those that were read but for their last token begin to decode."""
        running = self._generation_batch
        self._generation_batch = type(running).empty(self.model, self.sampler)
        try:
            progress, _ = self.next()
        finally:
            begun, self._generation_batch = self._generation_batch, running
        if len(begun):
            running.extend(begun)
        return list(progress)

    def decode(self) -> list[Any]:
        """One token of every answer."""
        with mx.stream(self.stream):
            return list(self._generation_batch.next())

    def settle(self) -> None:
        """Carry out what sequences that joined or left put off; until then the old and the new batch hold memory.

        Layer by layer: all at once, every layer's old and new arrays may be there together.
        """
        for batch in (self._generation_batch, self._prompt_batch):
            for cache in leaves(batch.prompt_cache):
                if getattr(cache, "keys", None) is not None:
                    # Padding that is cut off stays allocated under the view that is left.
                    cache.keys, cache.values = mx.contiguous(cache.keys), mx.contiguous(cache.values)
                mx.eval(cache.state)


def open_generator(loaded: Loaded, max_batch: int, kind: Callable[..., Generator] = Generator) -> Generator:
    """Its rows end with the model's end-of-text tokens."""
    metal = mx.metal.is_available()
    wired = mx.set_wired_limit(0) if metal else 0
    generator = kind(
        loaded.model,
        stop_tokens=[(token,) for token in loaded.tokenizer.eos_token_ids],
        completion_batch_size=max_batch,
        prefill_batch_size=max_batch,
    )
    if metal:
        # Its constructor wires up to 75 % of the machine's memory, per process; kernel panics have been reported.
        mx.set_wired_limit(wired)
    return generator
