"""Plimsoll, mlx_lm.server and the raw BatchGenerator loop side by side: ``make bench``, about an hour.

Each figure comes out of one run on the same float32 weights of the built-in model and the same BLAS, the candidates
taking turns. ``--only NAME,...`` measures some of it, ``--write`` puts the table and the picture into docs/. Needs a
quiet machine.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import bursts
import chat_cost
import conversations
import front_load
import streams
import switching
from peers import Setup
from report import Report, machine, write_picture, write_table

from plimsoll import config
from plimsoll.catalog.installed import default_cache_dir

ROOT = Path(__file__).parents[2]


def in_a_worker(script: str) -> Callable[[Setup, Report], None]:
    """The rows of a script beside this one that loads a model into a process like a worker's."""

    def measure(setup: Setup, report: Report) -> None:
        rows, path = setup.scratch / "rows.json", Path(__file__).with_name(script)
        command = [sys.executable, str(path), "--rounds", str(setup.rounds), "--rows", str(rows)]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False)  # it exits with 1 for a target that was missed
        for figure, target, value, ok in json.loads(rows.read_text(encoding="utf-8")):
            report.row(figure, target, value, ok=ok)
        rows.unlink()

    return measure


SECTIONS: dict[str, Callable[[Setup, Report], None]] = {
    "streams": streams.measure,
    "step": in_a_worker("one_stream.py"),
    "bursts": bursts.measure,
    "quantized": streams.measure_quantized,
    "admission": conversations.measure_admission,
    "beside": conversations.measure_beside,
    "edit": in_a_worker("lookup.py"),
    "turns": conversations.measure_turns,
    "switch": switching.measure_switch,
    "memory": switching.measure_memory,
    "front": front_load.measure,
    "chat": chat_cost.measure,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(SECTIONS), help=", ".join(SECTIONS))
    parser.add_argument("--rounds", type=int, default=3, help="how often the candidates take turns")
    parser.add_argument("--write", action="store_true", help="write docs/speed.md and docs/images/speed.svg")
    options = parser.parse_args()
    report = Report()
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        setup = Setup(default_cache_dir(config.load()), Path(scratch), options.rounds)
        for name in options.only.split(","):
            print(f"-- {name}")
            SECTIONS[name](setup, report)
    if options.write:
        write_picture(ROOT / "docs/images/speed.svg", report)
        write_table(ROOT / "docs/speed.md", report, f"{machine()}; {options.rounds} rounds")
    print(f"{len(report.missed)} targets missed" + "".join(f"\n  {figure}" for figure in report.missed))
    raise SystemExit(bool(report.missed))


if __name__ == "__main__":
    main()
