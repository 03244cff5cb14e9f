"""Opens a chat model: its files, its generator, its prefix store and all that one step over its batch needs."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import msgspec
from mlx_lm.generate import generation_stream
from mlx_lm.models.cache import make_prompt_cache

from plimsoll.catalog.model_card import sampling_defaults
from plimsoll.catalog.source import Progress
from plimsoll.engine.chat.generator import Generator, open_generator, open_pace
from plimsoll.engine.chat.kv_budget import KvBudget
from plimsoll.engine.chat.kv_measure import READ_TOKENS, measure, takes_a_batch
from plimsoll.engine.chat.kv_room import KvRoom
from plimsoll.engine.chat.one_at_a_time import OneAtATime
from plimsoll.engine.chat.prefill_pacing import Pace
from plimsoll.engine.chat.prefix_store.disk_store import FOLDER, DiskStore
from plimsoll.engine.chat.prefix_store.fingerprint import fingerprint, is_remembered
from plimsoll.engine.chat.prefix_store.prefix_store import PrefixStore, needs_states_of
from plimsoll.engine.chat.prefix_store.reuse import PromptReuse
from plimsoll.engine.chat.prefix_store.snapshot_marks import Marks
from plimsoll.engine.chat.prefix_store.spec import Spec
from plimsoll.engine.chat.prompt_scores import PromptScores, portion, scoring_bytes
from plimsoll.engine.chat.prompts import Prompt, PromptMaker
from plimsoll.engine.chat.sampling import TokenLogprobs, known_tokens
from plimsoll.engine.dialect.model_files import use_template
from plimsoll.engine.load import loading
from plimsoll.engine.load.device_memory import limit_memory
from plimsoll.engine.load.loading import TokenizerReader
from plimsoll.engine.protocol import EngineOptions, ModelInfo

if TYPE_CHECKING:
    from plimsoll.engine.group.rank import Rank


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A loaded model and what belongs to it alone; at most ``max_batch`` requests run side by side.

    At most ``portion`` tokens of a prompt that is scored are read at once.
    """

    loaded: loading.Loaded
    generator: Generator
    pace: Pace
    room: KvRoom
    prompts: PromptMaker
    logprobs: TokenLogprobs
    reuse: PromptReuse
    max_batch: int
    portion: int

    def scores(self, prompt: Prompt) -> PromptScores | None:
        """What scores the prompt, where that was asked for and no earlier worker has sent it."""
        if not prompt.score or prompt.so_far:
            return None
        return PromptScores(prompt.tokens, prompt.logprobs or 0, self.logprobs, self.generator.narrow)


def open_model(
    path: Path,
    options: EngineOptions,
    progress: Progress,
    clock: Callable[[], float],
    *,
    tokenizers: TokenizerReader | None = None,
    rank: "Rank | None" = None,
) -> OpenModel:
    """Load the model in ``path`` and measure what its KV caches take; ``rank`` is set for the first one of a group."""
    loaded = loading.load(path, options, progress, tokenizers, rank)
    batches = loading.batches(loaded.model)
    pace = open_pace(loaded.info.device, options.prefill_chunk)
    with mx.stream(generation_stream):
        layers = make_prompt_cache(loaded.model)
        cost = measure(loaded.model, pace.most, layers)
        spec = Spec(layers, READ_TOKENS)
        batches = batches and (rank is not None or takes_a_batch(loaded.model, layers))
    if not batches:
        options = msgspec.structs.replace(options, max_batch=1)
    store = _open_store(loaded, rank)
    generator = _open_generator(loaded, store, options, rank, batches=batches)
    wired = limit_memory(loaded.info, options)
    context = loaded.info.context
    most_bytes = options.kv_most_bytes if options.kv_lease else 0
    vocab_size = loaded.info.vocab_size
    at_once = min(pace.most, portion(vocab_size))
    budget = KvBudget(
        options.kv_bytes,
        cost,
        context=context,
        chunk=pace.most_padding,
        most_bytes=most_bytes,
        scoring_bytes=scoring_bytes(vocab_size, at_once),
    )
    known = known_tokens(loaded.tokenizer, vocab_size)
    if options.chat_template:
        use_template(loaded.tokenizer, Path(options.chat_template))
    maker = PromptMaker(
        loaded.tokenizer,
        context,
        max(known, default=-1) + 1,
        sampling=sampling_defaults(path),
    )
    if store.needs_states:
        maker.marks = Marks(maker.render)
    reuse = PromptReuse(store, _open_disk(path, loaded.info, spec, options))
    room = KvRoom(options, budget, store, clock, wired)
    logprobs = TokenLogprobs(loaded.tokenizer)
    return OpenModel(loaded, generator, pace, room, maker, logprobs, reuse, options.max_batch, at_once)


def _open_store(loaded: loading.Loaded, rank: "Rank | None") -> PrefixStore:
    def make_caches() -> list[Any]:
        return list(make_prompt_cache(loaded.model))

    needs_states = rank.any_of(needs_states_of(make_caches())) if rank else None
    return PrefixStore(make_caches, 0, needs_states=needs_states)


def _open_disk(path: Path, info: ModelInfo, spec: Spec, options: EngineOptions) -> DiskStore | None:
    if not options.disk_cache_bytes:
        return None
    root = Path(options.cache_dir) / FOLDER
    return DiskStore(
        root,
        lambda stop: fingerprint(path, options, info, root, stop),
        options.disk_cache_bytes,
        spec,
        quick=is_remembered(path, options, root),
    )


def _open_generator(
    loaded: loading.Loaded, store: PrefixStore, options: EngineOptions, rank: "Rank | None", *, batches: bool
) -> Generator:
    if not batches:
        return open_generator(loaded, 1, OneAtATime)
    if rank is None:
        return open_generator(loaded, options.max_batch, lookup=options.prompt_lookup)
    from plimsoll.engine.group.leader import LeadingGenerator  # noqa: PLC0415 - most models have one worker

    leader = open_generator(loaded, options.max_batch, functools.partial(LeadingGenerator, rank))
    store.mirror = leader
    return leader
