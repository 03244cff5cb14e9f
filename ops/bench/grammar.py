"""What grammars cost and whether they keep their word, on the built-in model in this process.

``LD_PRELOAD=... python ops/bench/grammar.py [--rounds 5] [--schemas 200]`` prints one line of JSON per figure.
``--hostile`` measures something else, on a worker process: how long an innocent request waits beside 1, 2 and 4 schemas
that take seconds to compile.
"""

import argparse
import json
import os
import queue
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
from in_process import builtin_folder

from plimsoll.catalog.source import ModelSource
from plimsoll.engine import protocol as p
from plimsoll.engine.chat.engine import MlxEngine
from plimsoll.engine.handle.process import WorkerProcess
from plimsoll.engine.protocol import ChatRequest, Format, Sampling, Tool

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "engine"))
from mlx_helpers import Run, open_engine
from schemas import sample

BATCH = 8
STEPS = 24
# Long enough that no answer ends while it is timed.
LONG = {"type": "array", "items": {"type": "string", "minLength": 200}, "minItems": 8}
LONG_OBJECT = {
    "type": "object",
    "properties": {f"key{index}": {"type": "array", "items": {"type": "number"}, "minItems": 9} for index in range(9)},
    "required": [f"key{index}" for index in range(9)],
    "additionalProperties": False,
}

# Its call does not come: what is measured is the text before one.
STRICT = Tool("get_weather", "The weather", {"type": "object", "properties": {"city": {"type": "string"}}}, strict=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--seconds", type=float, default=1800, help="answers not there by then are left out")
    parser.add_argument("--hostile", action="store_true")
    options = parser.parse_args()
    folder = builtin_folder()
    if options.hostile:
        hostile(folder)
        return
    engine = open_engine(folder, dequantize=True, prompt_cache_bytes=0, max_batch=2 * BATCH)
    print(json.dumps({"blas": engine.info.blas, "batch": BATCH}), flush=True)
    if options.rounds:
        cost(engine, options.rounds)
    if options.schemas:
        print(json.dumps(validity(engine, options)), flush=True)


def cost(engine: MlxEngine, rounds: int) -> None:
    kinds = {"plain": None, "strings": Format(LONG), "numbers": Format(LONG_OBJECT), "strict tool": STRICT}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):  # in turns, for the machine may be busy with other things too
        for kind, form in kinds.items():
            times[kind] += step_times(engine, form)
    medians = {kind: statistics.median(found) for kind, found in times.items()}
    for kind, median in medians.items():
        share = median / medians["plain"] - 1
        print(json.dumps({kind: f"{1000 * median:.1f} ms a step", "over plain": f"{100 * share:+.1f} %"}), flush=True)


def step_times(engine: MlxEngine, form: Format | Tool | None) -> list[float]:
    run = Run(engine)
    for index in range(BATCH):
        text = f"Write a very long story about {index + 2} ships, without an end."
        run.submit(str(index), chat(text, Sampling(temperature=0), form, 4 * STEPS))
    while len(run.counts) < BATCH:
        run.step()
    found = []
    for _ in range(STEPS):
        start = time.perf_counter()
        run.step()
        found.append(time.perf_counter() - start)
    assert not run.reasons, run.reasons
    for index in range(BATCH):
        engine.cancel(str(index))
    run.finish()
    return found


def hostile(folder: Path) -> None:
    """Milliseconds to the end of an answer of one token: a plain one, and one under a schema that is new."""
    events: queue.Queue[Any] = queue.Queue()
    worker = WorkerProcess(events.put, events.put)
    try:
        options = p.EngineOptions(cache_dir="", dequantize=True, prompt_cache_bytes=0)
        worker.send(p.LoadModel(ModelSource("m", "folder", str(folder)), options))
        while not isinstance(event := events.get(timeout=120), p.Ready):
            assert not isinstance(event, int | p.LoadError), event
        innocent(worker, events, 0, 0)
        for count in (0, 1, 2, 4):
            times = [innocent(worker, events, count, number) for number in range(5 * count, 5 * count + 3)]
            plain, small = (f"{1000 * statistics.median(one):.0f} ms" for one in zip(*times, strict=True))
            load = f"{os.getloadavg()[0]:.1f}"
            print(json.dumps({"hostile schemas": count, "plain": plain, "new schema": small, "load": load}), flush=True)
    finally:
        worker.kill()


def innocent(worker: WorkerProcess, events: "queue.Queue[Any]", count: int, number: int) -> tuple[float, float]:
    """Seconds until the plain and the constrained answer end; returns when the hostile ones are refused, too."""
    for index in range(count):
        schema = {"type": "integer", "multipleOf": 999_983 - 10 * number - 2 * index}
        worker.send(p.Generate(f"hostile{index}", chat("Go on.", Sampling(temperature=0), Format(schema), 1)))
    small = Format({"type": "object", "properties": {f"number{count}x{number}": {"type": "integer"}}})
    start, ended = time.monotonic(), {}
    worker.send(p.Generate("plain", chat("Go on.", Sampling(temperature=0), None, 1)))
    worker.send(p.Generate("small", chat("Go on.", Sampling(temperature=0), small, 1)))
    while len(ended) < count + 2:
        event = events.get(timeout=120)
        assert not isinstance(event, int | p.EngineError), event
        if isinstance(event, p.RequestError):
            ended[event.id] = time.monotonic() - start
        if isinstance(event, p.Step):
            ended |= {name: time.monotonic() - start for name, _, _ in event.endings}
    return ended["plain"], ended["small"]


def validity(engine: MlxEngine, options: argparse.Namespace) -> dict[str, object]:
    """Every answer to a random schema, at temperature 1, against an independent validator."""
    schemas = sample(options.schemas)
    start = time.monotonic()
    run = Run(engine)
    for index, schema in enumerate(schemas):
        asked = f"Answer with JSON for this schema: {json.dumps(schema, ensure_ascii=False)}"
        run.submit(str(index), chat(asked, Sampling(temperature=1, seed=index), Format(schema), options.max_tokens))
    while engine.busy() and time.monotonic() - start < options.seconds:
        run.step()
    for index in range(len(schemas)):
        engine.cancel(str(index))
    run.finish()
    invalid = [
        {"schema": schema, "answer": run.texts[str(index)]}
        for index, schema in enumerate(schemas)
        if run.reasons.get(str(index)) == "stop" and not valid(run.texts[str(index)], schema)
    ]
    endings = {reason: list(run.reasons.values()).count(reason) for reason in sorted(set(run.reasons.values()))}
    took = round(time.monotonic() - start, 1)
    return {"schemas": len(schemas), "endings": endings, "refused": len(run.refused), "invalid": invalid, "s": took}


def valid(text: str, schema: dict[str, Any]) -> bool:
    try:
        jsonschema.validate(json.loads(text), schema)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def chat(text: str, sampling: Sampling, form: Format | Tool | None, max_tokens: int) -> ChatRequest:
    """With a tool the answer is free up to a call of it."""
    messages = [{"role": "user", "content": text}]
    if isinstance(form, Tool):
        return ChatRequest(messages, sampling, max_tokens, tools=(form,))
    return ChatRequest(messages, sampling, max_tokens, format=form)


if __name__ == "__main__":
    main()
