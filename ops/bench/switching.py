"""What a switch to a model that is not loaded costs, and what all processes hold after many of them."""

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from peers import MlxLmServer, Plimsoll, Setup, ask, environment
from report import Report

ROUNDS = 7
SWAPS = 50
COMPARED = 10
# One of the two models at a time: each takes 630 MB and at least 190 MB for its conversations.
LIMIT = "1500MiB"
_SETTLE_S = 60.0
_AT_REST_S = 0.02
HELLO = [[{"role": "user", "content": "Name a colour."}]]
_WARM = """
import os, sys, time, json
out = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)
import mlx.core as mx
from mlx_lm import load, stream_generate
mx.disable_compile()
for line in sys.stdin:
    folder = json.loads(line)
    start = time.perf_counter()
    model, tokenizer = load(folder)
    loaded = time.perf_counter() - start
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Name a colour."}], add_generation_prompt=True)
    next(stream_generate(model, tokenizer, prompt, max_tokens=1))
    out.write(json.dumps([loaded, time.perf_counter() - start - loaded]) + "\\n")
    del model, tokenizer
"""


def measure_switch(setup: Setup, report: Report) -> None:
    """Two models of which one fits: the first token of the one that is not there."""
    other = copy_of(setup)
    ours = Plimsoll(setup, entries={"other": {"source": str(other)}}, memory={"limit": LIMIT})
    warm = subprocess.Popen(
        [sys.executable, "-c", _WARM],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert warm.stdin
    assert warm.stdout
    with contextlib.closing(ours):
        for model in (ours.model, "other"):
            ask(ours, HELLO, 1, model=model)
        switches, loads = [], []
        for number in range(ROUNDS):
            wait_for_spare(ours)
            model, folder = (ours.model, setup.dense) if number % 2 == 0 else ("other", other)
            (answer,) = ask(ours, HELLO, 1, model=model)
            switches.append(answer.first_s)
            warm.stdin.write(json.dumps(str(folder)) + "\n")
            warm.stdin.flush()
            loads.append(json.loads(warm.stdout.readline()))
    warm.stdin.close()
    warm.wait(30)
    ours_s, load_s, first_s = (
        statistics.median(values) for values in (switches, [one[0] for one in loads], [one[1] for one in loads])
    )
    share = (ours_s - first_s) / load_s
    report.row(
        "switch to a model that is not loaded, up to its first token",
        "<= 1.15 x + first",
        f"{ours_s:.2f} s; mlx_lm.load {load_s:.2f} s, its first token {first_s:.2f} s ({share:.2f} x)",
        ok=share <= 1.15,
    )


def measure_memory(setup: Setup, report: Report) -> None:
    """Resident memory of all processes after a load and after swaps, beside mlx_lm.server's."""
    other = copy_of(setup)
    with contextlib.ExitStack() as stack:
        theirs = MlxLmServer(setup.dense)
        stack.callback(theirs.close)
        ask(theirs, HELLO, 8)
        their_load = theirs.memory_mb()
        for number in range(COMPARED):
            ask(theirs, HELLO, 8, model=str(other if number % 2 == 0 else setup.dense))
        their_swaps = theirs.memory_mb()
    ours = Plimsoll(setup, entries={"other": {"source": str(other)}}, memory={"limit": LIMIT})
    with contextlib.closing(ours):
        ask(ours, HELLO, 8)
        wait_for_spare(ours)
        our_load, pss_load = ours.memory_mb(), ours.memory_mb("pss")
        held = []
        for number in range(SWAPS):
            ask(ours, HELLO, 8, model="other" if number % 2 == 0 else ours.model)
            wait_for_spare(ours)
            held.append(ours.memory_mb())
            report.point("MB after swaps", "Plimsoll", number + 1, held[-1])
    for what, our, their in (
        ("after a load", our_load, their_load),
        (f"after {COMPARED} swaps", held[COMPARED - 1], their_swaps),
    ):
        report.row(
            f"all processes {what}: Plimsoll with its spare worker, mlx_lm.server",
            "<= theirs + 80 MB",
            f"{our:.0f} MB, {their:.0f} MB",
            ok=our <= their + 80,
        )
    report.row("the same, shared pages counted once (PSS)", "", f"{pss_load:.0f} MB")
    early, late = statistics.median(held[5:15]), statistics.median(held[-10:])
    report.row(
        f"level over {SWAPS} swaps: swaps 6 to 15, the last 10",
        "+- 20 MB",
        f"{early:.0f} MB, {late:.0f} MB",
        ok=abs(late - early) <= 20,
    )


def copy_of(setup: Setup) -> Path:
    """The same model in another folder, so that it is another model to everybody."""
    other = setup.scratch / "other"
    if not other.exists():
        shutil.copytree(setup.dense, other)
    return other


def wait_for_spare(ours: Plimsoll) -> None:
    """Until the server is as it is between two requests of a user: no load goes on, and its spare worker is ready."""
    until, busy_before = time.monotonic() + _SETTLE_S, -1.0
    while time.monotonic() < until:
        children = ours.served.workers()
        busy = sum(sum(child.cpu_times()[:2]) for child in children)
        if len(children) == 2 and busy - busy_before < _AT_REST_S:
            return
        busy_before = busy
        time.sleep(0.3)
    raise TimeoutError(f"{len(children)} workers after {_SETTLE_S:.0f} s, where a model's and a spare one should be")
