"""What the simulated fleet is made of: Macs, models and traffic, all stated here and drawn from one seed."""

import random
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, islice

from plimsoll.memory.needs import Weight, ways_to_load
from plimsoll.memory.plan import Need

GB = 10**9
GIB = 1024**3
# Memory, share of the fleet, memory bandwidth in GB/s (Apple's data sheets), and what other programs hold, in GiB.
MACS = (
    ("M4 Max 64 GB", 64, 0.4, 546, 8),
    ("M4 Max 128 GB", 128, 0.3, 546, 10),
    ("M2 Ultra 192 GB", 192, 0.2, 800, 12),
    ("M3 Ultra 512 GB", 512, 0.1, 819, 16),
)
# Billions of parameters, those a token uses, KV values per token (2 x layers x KV heads x head size; DeepSeek's
# latent: layers x 576), as published.
MODELS = (
    ("llama-3.2-3b", 3.2, 3.2, 57_344),
    ("phi-3.5-mini", 3.8, 3.8, 196_608),
    ("qwen2.5-7b", 7.6, 7.6, 28_672),
    ("llama-3.1-8b", 8.0, 8.0, 65_536),
    ("mistral-nemo-12b", 12.2, 12.2, 81_920),
    ("qwen2.5-14b", 14.8, 14.8, 98_304),
    ("mistral-small-24b", 23.6, 23.6, 81_920),
    ("gemma-2-27b", 27.2, 27.2, 188_416),
    ("qwen3-30b-a3b", 30.5, 3.3, 49_152),
    ("qwen2.5-coder-32b", 32.8, 32.8, 131_072),
    ("mixtral-8x7b", 46.7, 12.9, 65_536),
    ("llama-3.3-70b", 70.6, 70.6, 163_840),
    ("qwen2.5-72b", 72.7, 72.7, 163_840),
    ("mistral-large-123b", 122.6, 122.6, 180_224),
    ("mixtral-8x22b", 140.6, 39.1, 114_688),
    ("qwen3-235b-a22b", 235.1, 22.2, 96_256),
    ("llama-3.1-405b", 405.9, 405.9, 258_048),
    ("deepseek-r1-671b", 671.0, 37.5, 35_136),
)
# Bits per weight with MLX's scales and biases: 32 more for each group of 64.
BITS = (4.5, 6.5, 8.5)
LARGEST_GB = 400
ZIPF = 1.0
SLOTS = 8
CONTEXT = 32_768
TURNS = 4
PROMPT_TOKENS = 1500
ANSWER_TOKENS = 250
THINK_S = 20.0
# New conversations a second and node; each has TURNS turns.
CONVERSATIONS_PER_NODE = 0.05
READ_GB_PER_S = 5.0
START_S = 2.0
# Of the memory bandwidth, what decoding reaches; what one more running answer costs the others; FLOP/s of a prompt.
DECODES_AT = 0.6
SHARED_AT = 0.1
PREFILL_FLOPS = 12e12
# Of a prompt that the node knows already, what is still to be read.
STILL_TO_READ = 0.1


@dataclass(frozen=True)
class Model:
    name: str
    weights_bytes: int
    active_bytes: float
    active_parameters: float
    needs: tuple[Need, ...]

    def seconds(self, prompt: int, answer: int, bandwidth_gb_s: float, others: int) -> float:
        """From its slot to its last token, beside so many other answers on the machine."""
        decode_per_s = DECODES_AT * bandwidth_gb_s * GB / self.active_bytes
        prefill_per_s = PREFILL_FLOPS / (2 * self.active_parameters)
        return (prompt / prefill_per_s + answer / decode_per_s) * (1 + SHARED_AT * others)


@dataclass
class Request:
    """One turn of a conversation; ``ending`` is set once."""

    id: int
    conversation: int
    turn: int
    turns: int
    model: Model
    prompt: int
    answer: int
    arrived: float
    warm: bool = False
    known: bool = False
    sent_again: int = 0
    ending: str = ""
    reason: str = ""


def models(count: int) -> list[Model]:
    """Each base at each width that is small enough, then fine-tunes of those below 100 GB again and again."""
    return list(islice(_models(), count))


def machines(count: int) -> list[tuple[str, int, float, int]]:
    """Kind, GiB, GB/s and GiB of others for each node, mixed evenly."""
    shares = list(accumulate(share for _, _, share, _, _ in MACS))
    picked = (MACS[bisect(shares, (n * 0.618034) % 1.0)] for n in range(count))
    return [(kind, gib, bandwidth, others) for kind, gib, _, bandwidth, others in picked]


class Traffic:
    """Conversations as a Poisson process; popularity goes by Zipf, and slow models tend to be asked for less."""

    def __init__(self, offered: list[Model], per_s: float, seed: int) -> None:
        self._seed = seed
        self._arrivals = random.Random(seed)
        self._per_s = per_s
        self._ranked = sorted(offered, key=lambda one: self._arrivals.random() * one.active_bytes**0.5)
        self._weights = list(accumulate((rank + 1) ** -ZIPF for rank in range(len(offered))))
        self._requests = 0
        self._conversations = 0

    def next_in_s(self) -> float:
        return self._arrivals.expovariate(self._per_s)

    def first(self, now: float) -> Request:
        self._conversations += 1
        draw = self._draw(self._conversations, 1)
        turns = 1 + int(draw.expovariate(1 / (TURNS - 0.5)))
        model = draw.choices(self._ranked, cum_weights=self._weights)[0]
        self._requests += 1
        prompt, answer = _tokens(draw, PROMPT_TOKENS), _tokens(draw, ANSWER_TOKENS)
        return Request(self._requests, self._conversations, 1, turns, model, prompt, answer, now)

    def following(self, before: Request, now: float) -> Request:
        draw = self._draw(before.conversation, before.turn + 1)
        answer = _tokens(draw, ANSWER_TOKENS)
        prompt = min(before.prompt + before.answer + _tokens(draw, PROMPT_TOKENS // 10), CONTEXT - answer)
        self._requests += 1
        return replace(
            before,
            id=self._requests,
            turn=before.turn + 1,
            prompt=prompt,
            answer=answer,
            arrived=now,
            known=False,
            warm=False,
            ending="",
            reason="",
            sent_again=0,
        )

    def think_s(self, before: Request) -> float:
        return self._draw(before.conversation, -before.turn).expovariate(1 / THINK_S)

    def _draw(self, conversation: int, turn: int) -> random.Random:
        """A turn is the same whatever happened before it, so that two runs differ by their rules only."""
        return random.Random(hash((self._seed, conversation, turn)))


def _tokens(draw: random.Random, mean: int) -> int:
    return min(CONTEXT // 4, 1 + int(draw.expovariate(1 / mean)))


def _models() -> Iterator[Model]:
    sizes = [(base, bits) for bits in BITS for base in MODELS if base[1] * bits / 8 <= LARGEST_GB]
    yield from (_model(base, bits) for base, bits in sizes)
    for tune in range(1, 1000):
        yield from (_model(base, bits, f"-tune{tune}") for base, bits in sizes if base[1] * bits / 8 < 100)


def _model(base: tuple[str, float, float, int], bits: float, tune: str = "") -> Model:
    name, billions, active, kv_values = base
    stored = int(billions * GB * bits / 8)
    weight = Weight(stored, stored, stored, kv_values, CONTEXT)
    needs = ways_to_load(weight, device="gpu", dequantize="never", context=CONTEXT, kv_budget_bytes=None, measured={})
    return Model(f"{name}-{int(bits)}bit{tune}", stored, active * GB * bits / 8, active * GB, needs)
