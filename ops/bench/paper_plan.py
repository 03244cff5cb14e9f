"""What two to four Macs would hold and at most do, on paper: ``python ops/bench/paper_plan.py``. Nothing is measured.

Prints the two tables of docs/scale.md from the models' published shapes, Apple's data sheets and two latencies that
others have measured.
"""

from dataclasses import dataclass

from plimsoll.memory.needs import Weight, ways_to_load
from plimsoll.memory.report import GIB, gib

GB = 10**9


@dataclass(frozen=True)
class Model:
    """Its published shape; ``outside`` counts the two embeddings, ``pipeline`` says whether mlx-lm offers it."""

    parameters: float
    active: float
    layers: int
    kv_heads: int
    hidden: int
    outside: int
    pipeline: bool = True


MODELS = {
    "Qwen2.5-Coder-32B": Model(32.8e9, 32.8e9, 64, 8, 5120, 2 * 152_064 * 5120),
    "DeepSeek-R1-Distill-Llama-70B": Model(70.6e9, 70.6e9, 80, 8, 8192, 2 * 128_256 * 8192, pipeline=False),
    "Qwen3-235B-A22B": Model(235.1e9, 22.2e9, 94, 4, 4096, 2 * 151_936 * 4096),
}
HEAD = 128
BITS = {"4-bit": 4.5, "8-bit": 8.5}
HOSTS = (1, 2, 4)
BANDWIDTH_GB_S = 546
LATENCY_US = {"RDMA": 25.5, "TCP": 300.0}
# Of a Mac's memory, what Metal recommends to use, below the critical line.
USABLE = 0.75 * 0.95
MACS_GB = (32, 48, 64, 96, 128, 192, 256, 512)


def main() -> None:
    print("| model | one Mac | two, each | four, each |\n|---|---|---|---|")
    for name, model in MODELS.items():
        for form, bits in BITS.items():
            cells = [fits(share_bytes(model, bits, hosts)) for hosts in HOSTS]
            print(f"| {name}, {form} | {' | '.join(cells)} |")
    columns = "one Mac | two, tensor, RDMA | two, tensor, TCP | two, pipeline | four, tensor, RDMA |"
    print(f"\n| model, 4-bit | bytes a token: tensor, pipeline | {columns}\n|---|---|---|---|---|---|---|")
    for name, model in MODELS.items():
        exchanges = 2 * model.layers
        sent = f"{exchanges * model.hidden * 2 / 1000:,.0f} kB, {model.hidden * 2 / 1000:.0f} kB"
        speeds = [
            f"{per_s(model):.0f}",
            f"{per_s(model, 2, exchanges):.0f}",
            f"{per_s(model, 2, exchanges, 'TCP'):.0f}",
            f"{per_s(model, 1, 2, 'TCP'):.0f}" if model.pipeline else "not offered",
            f"{per_s(model, 4, exchanges):.0f}",
        ]
        print(f"| {name} | {sent} | {' | '.join(speeds)} |")


def share_bytes(model: Model, bits: float, hosts: int) -> int:
    """What one host is granted with room for 32,768 tokens: layers and KV cache divided, the rest held by each."""
    stored = int(((model.parameters - model.outside) / hosts + model.outside) * bits / 8)
    weight = Weight(stored, stored, stored, 2 * model.layers * model.kv_heads * HEAD // hosts, None)
    ways = ways_to_load(weight, device="gpu", dequantize="never", context=None, kv_budget_bytes=None, measured={})
    return ways[0].total_bytes


def fits(size: int) -> str:
    mac = next((one for one in MACS_GB if size <= one * GIB * USABLE), None)
    return f"{gib(size)}: {f'{mac} GB' if mac else 'none'}"


def per_s(model: Model, readers: int = 1, exchanges: int = 0, by: str = "RDMA") -> float:
    """Tokens per second of one answer at the most: ``readers`` read the active weights between them, exchanges wait."""
    read_s = model.active * BITS["4-bit"] / 8 / readers / (BANDWIDTH_GB_S * GB)
    return 1 / (read_s + exchanges * LATENCY_US[by] / 1e6)


if __name__ == "__main__":
    main()
