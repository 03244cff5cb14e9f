"""Tokens per second of one process and of a worker group on this machine: ``python ops/bench/group.py FOLDER``.

On one machine a group can't be faster: what is measured is what the group itself costs. FOLDER is a model in MLX's
format that so many ranks can split; with --make the built-in model is written there in such a form, for two ranks.
"""

import argparse
import json
import queue
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import psutil

from plimsoll import config
from plimsoll.catalog.fetch import resolve
from plimsoll.catalog.installed import default_cache_dir
from plimsoll.catalog.source import BUILTIN, Group, GroupHost, ModelSource
from plimsoll.engine import protocol as p
from plimsoll.engine.handle.environment import worker_environment
from plimsoll.engine.handle.process import Worker, WorkerProcess
from plimsoll.engine.handle.worker_group import GroupSettings, WorkerGroup

TOKENS = 64
QUESTION = [{"role": "user", "content": "Tell me a long story about a ship and the sea."}]
_HEAD_DIM = 64
_HEADS, _KV_HEADS = 12, 4
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--split", choices=["tensor", "pipeline"], default="tensor")
    parser.add_argument("--make", action="store_true", help="write the built-in model to FOLDER, if nothing is there")
    parser.add_argument("--make-only", action="store_true", help="write it, and measure nothing")
    args = parser.parse_args()
    if args.make_only:
        make_model(args.folder, args.split)
        return
    if args.make:
        # In a child process: MLX may not be loaded in a process that starts workers.
        subprocess.run([sys.executable, __file__, "--make-only", "--split", args.split, args.folder], check=True)
    alone = measure(args.folder, 1, args.split)
    together = measure(args.folder, args.ranks, args.split)
    for name, (rate, many, wire, text) in {"1 process": alone, f"{args.ranks} ranks, {args.split}": together}.items():
        print(f"{name:18} {rate:5.1f} tokens/s alone, {many:5.1f} with 4 at once, {wire / 1024:6.1f} KiB a token")
        assert text == alone[-1], f"another answer: {text!r}"


def measure(folder: Path, ranks: int, split: Literal["tensor", "pipeline"]) -> tuple[float, float, float, str]:
    """Tokens per second of one answer and of four, bytes on the loopback for each token of the one, and its text."""
    heard: queue.Queue[Any] = queue.Queue()
    worker: Worker
    if ranks == 1:
        worker = WorkerProcess(heard.put, lambda *exit_: heard.put(exit_), worker_environment("auto"))
    else:
        hosts = (GroupHost("127.0.0.1", "127.0.0.1", here=True),) * ranks
        settings = GroupSettings(Group(hosts, "ring", split), (), "", 0, 95.0, 98.0)
        worker = WorkerGroup(settings, heard.put, lambda *exit_: heard.put(exit_), worker_environment("auto"))
    try:
        worker.send(p.LoadModel(ModelSource("m", "folder", str(folder)), p.EngineOptions(cache_dir="")))
        wait(heard, p.Ready)
        answer(worker, heard, ["warm"])
        sent = psutil.net_io_counters(pernic=True)["lo"].bytes_sent
        rate, text = answer(worker, heard, ["one"])
        wire = (psutil.net_io_counters(pernic=True)["lo"].bytes_sent - sent) / TOKENS
        return rate, answer(worker, heard, ["a", "b", "c", "d"])[0], wire, text
    finally:
        worker.kill()


def answer(worker: Worker, heard: "queue.Queue[Any]", names: list[str]) -> tuple[float, str]:
    for name in names:
        worker.send(p.Generate(name, p.ChatRequest(QUESTION, p.Sampling(temperature=0), max_tokens=TOKENS)))
    first, text, count, open_ = 0.0, "", 0, set(names)
    while open_:
        step = wait(heard, p.Step)
        if step.texts:
            first = first or time.monotonic()
            text += "".join(part for name, part, _ in step.texts if name == names[0])
            count += len(step.texts)
        open_ -= {name for name, _, _ in step.endings}
    return count / (time.monotonic() - first), text


def wait(heard: "queue.Queue[Any]", kind: type) -> Any:
    while not isinstance(event := heard.get(timeout=300), kind):
        assert not isinstance(event, p.LoadError | p.EngineError | tuple), event
    return event


def make_model(folder: Path, split: str) -> None:
    """Write the built-in model to ``folder``, if nothing is there, in a shape that two hosts can split by ``split``.

    The weights and the answers stay the same.
    """
    import mlx.core as mx  # noqa: PLC0415 - MLX may not be loaded in a process that starts workers

    if not (folder / "config.json").exists():
        source = resolve(BUILTIN, cache_dir=default_cache_dir(config.load()), offline=False, progress=lambda *_: None)
        weights, settings = _dense(source)
        folder.mkdir(parents=True, exist_ok=True)
        weights, changed = (_with_more_heads if split == "tensor" else _as_qwen2)(weights)
        mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
        for name in _TOKENIZER:
            shutil.copy(source / name, folder)
        (folder / "config.json").write_text(json.dumps(settings | changed))


def _dense(source: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    import mlx.core as mx  # noqa: PLC0415
    from mlx.utils import tree_flatten  # noqa: PLC0415
    from mlx_lm.utils import dequantize_model, load_model  # noqa: PLC0415

    model, settings = load_model(source, lazy=True)
    model = dequantize_model(model)
    model.set_dtype(mx.float16)
    weights = dict(tree_flatten(model.parameters()))
    return weights, {key: value for key, value in settings.items() if not key.startswith("quantization")}


def _with_more_heads(weights: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """12 heads and 4 KV heads instead of 9 and 3; the output projection multiplies the added ones by 0."""
    import mlx.core as mx  # noqa: PLC0415

    rows = {"q_proj": _HEADS * _HEAD_DIM, "k_proj": _KV_HEADS * _HEAD_DIM, "v_proj": _KV_HEADS * _HEAD_DIM}
    for name, array in weights.items():
        module = name.split(".")[-2]
        if module in rows:
            weights[name] = mx.pad(array, [(0, rows[module] - array.shape[0]), (0, 0)])
        if module == "o_proj":
            weights[name] = mx.pad(array, [(0, 0), (0, _HEADS * _HEAD_DIM - array.shape[1])])
    return weights, {"num_attention_heads": _HEADS, "num_key_value_heads": _KV_HEADS}


def _as_qwen2(weights: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same architecture with added biases of 0: mlx-lm can split Qwen2 by layers."""
    import mlx.core as mx  # noqa: PLC0415

    biases = {
        name.replace("weight", "bias"): mx.zeros(array.shape[:1], array.dtype)
        for name, array in weights.items()
        if name.split(".")[-2] in ("q_proj", "k_proj", "v_proj")
    }
    return weights | biases, {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}


if __name__ == "__main__":
    main()
