"""Tokens per second of one process and of a worker group on this machine: ``python ops/bench/group.py FOLDER``.

On one machine a group can't be faster: what is measured is what the group itself costs. FOLDER is a model in MLX's
format that so many ranks can split; with --make the built-in model is written there in such a form, for two ranks.
"""

import argparse
import queue
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import psutil

from plimsoll.engine import protocol as p
from plimsoll.engine.environment import worker_environment
from plimsoll.engine.process import Worker, WorkerProcess
from plimsoll.engine.worker_group import GroupSettings, WorkerGroup

TOKENS = 64
QUESTION = [{"role": "user", "content": "Tell me a long story about a ship and the sea."}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--split", choices=["tensor", "pipeline"], default="tensor")
    parser.add_argument("--make", action="store_true", help="write the built-in model to FOLDER, if nothing is there")
    args = parser.parse_args()
    if args.make:
        # Not here: MLX may not be loaded in a process that starts workers.
        subprocess.run(
            [sys.executable, Path(__file__).with_name("split_models.py"), args.folder, args.split], check=True
        )
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
        hosts = (p.GroupHost("127.0.0.1", "127.0.0.1", here=True),) * ranks
        settings = GroupSettings(p.Group(hosts, "ring", split), (), "", 0, 95.0, 98.0)
        worker = WorkerGroup(settings, heard.put, lambda *exit_: heard.put(exit_), worker_environment("auto"))
    try:
        worker.send(p.LoadModel(p.ModelSource("m", "folder", str(folder)), p.EngineOptions(cache_dir="")))
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


if __name__ == "__main__":
    main()
