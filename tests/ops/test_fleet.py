"""The simulated fleet keeps what the real one promises. The long form is ``ops/bench/fleet.py``."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "ops" / "bench"


@pytest.fixture
def simulate(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    from fleet import Plan, Simulation

    def run(nodes: int, **rest: Any):
        simulation = Simulation(Plan(nodes, seconds=120.0, **rest))
        simulation.run()
        return simulation

    return run


def test_a_fleet_that_loses_nodes_keeps_its_lines_and_ends_each_request_once(simulate):
    simulation = simulate(12, seed=3, fail_every_s=15.0, storm_at_s=60.0, storm_share=0.25)
    seen = simulation.seen
    assert seen.failures >= 4
    assert seen.requests > 50
    # A second ending raises in the simulation.
    assert sum(seen.endings.values()) == seen.requests
    assert seen.endings["answered"] > seen.requests / 2
    assert all(node.fullest_percent <= 95.0 for node in simulation.nodes.values())
    assert any(node.fullest_percent > 50.0 for node in simulation.nodes.values())


def test_what_is_refused_has_a_reason_for_each_node_that_is_there(simulate):
    simulation = simulate(3, seed=2)
    assert simulation.seen.refusals
    for refusal in simulation.seen.refusals:
        assert refusal.reasons.keys() == simulation.nodes.keys()
        assert all(len(reason) > 20 for reason in refusal.reasons.values())


def test_the_same_seed_gives_the_same_run_and_another_one_does_not(simulate):
    def story(seed: int) -> list[Any]:
        simulation = simulate(6, seed=seed, fail_every_s=40.0)
        return [simulation.seen.by_minute, simulation.now, [node.loads for node in simulation.nodes.values()]]

    assert story(5) == story(5)
    assert story(5) != story(6)


def test_the_command_prints_each_figure():
    options = ["--nodes", "4", "--models", "12", "--seconds", "30"]
    done = subprocess.run(
        [sys.executable, BENCH / "fleet.py", *options], capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    for figure in ("seed 1", "4 nodes: place", "4 nodes: the fullest node ever"):
        assert figure in done.stdout
