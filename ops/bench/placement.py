"""A fleet of Macs simulated on a fake clock: ``python ops/bench/placement.py``, about a minute on one core.

Decisions are the real ones of ``plimsoll/cluster`` and are timed; machines, models, traffic and failures are made up
(``fleet_world.py`` states them) and nothing is loaded. The same seed gives the same run. ``--write`` puts the table and
the picture into docs/.
"""

import argparse
import gc
import random
import time
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import msgspec
from fleet_sim import MINUTE, Plan, Simulation
from load import percentile
from report import Report, machine

from plimsoll.cluster.affinity import Affinity, beginnings
from plimsoll.cluster.fleet import Fleet
from plimsoll.cluster.node import NodeView, Standing
from plimsoll.cluster.placement import place
from plimsoll.cluster.routing import route
from plimsoll.memory.sample import Reading

ROOT = Path(__file__).parents[2]
SIZES = (10, 100, 1000)
SECONDS = 600.0
# Failures: one node of the thousand every 20 s, back after 2 minutes; a tenth of them at once half way.
FAIL_EVERY_NODE_S = 20_000.0
CALLS = 2000
HEARTBEATS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--nodes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of simulated time")
    parser.add_argument("--write", action="store_true", help="write docs/scale.md and docs/images/placement.svg")
    options = parser.parse_args()
    report = Report()
    how = f"{machine()}, msgspec {metadata.version('msgspec')}; seed {options.seed}"
    print(how)
    began = time.monotonic()
    compare_fits(report, options.seed, options.models, options.seconds)
    for nodes in options.nodes:
        simulation = storm(report, nodes, options)
        time_decisions(report, simulation)
    time_heartbeats(report, simulation)
    print(f"took {time.monotonic() - began:.0f} s")
    if options.write:
        import picture  # noqa: PLC0415 - matplotlib, for those who draw

        picture.write(ROOT / "docs/images/placement.svg", report)
        picture.write_table(ROOT / "docs/scale.md", report, how)
    raise SystemExit(bool(report.missed))


def compare_fits(report: Report, seed: int, models: int, seconds: float) -> None:
    """Both ways to choose among nodes with room, where memory is short."""
    for nodes in (10, 30, 100):
        for fit in ("tightest", "roomiest"):
            seen = Counter[str]()
            for turn in range(3):
                simulation = run(Plan(nodes, models, seconds, seed + turn, fit=fit))
                seen += simulation_counts(simulation)
            text = f"{share(seen, 'refused')} refused, {share(seen, 'cold')} cold, {seen['evictions']} evictions, "
            report.row(f"{nodes} nodes, {fit}", "", f"{text}{seen['cleaned']} at warning, {seen['loads']} loads")


def storm(report: Report, nodes: int, options: argparse.Namespace) -> Simulation:
    """With failures, the same traffic for each node whatever their number."""
    plan = Plan(
        nodes,
        options.models,
        options.seconds,
        options.seed,
        fail_every_s=FAIL_EVERY_NODE_S / nodes,
        storm_at_s=options.seconds / 2,
    )
    calm = simulation_counts(run(Plan(nodes, options.models, options.seconds, options.seed)))
    simulation = run(plan)
    seen, counts = simulation.seen, simulation_counts(simulation)
    report.row(f"{nodes} nodes: requests", "", f"{counts['all']:,}, of them {share(counts, 'known')} knew their prompt")
    report.row(f"{nodes} nodes: answered by a warm replica", "", f"{share(counts, 'warm')}")
    ups = f"{counts['loads']} loads, {counts['evictions']} evictions, {counts['cleaned']} unloaded at warning"
    report.row(f"{nodes} nodes: loads", "", f"{ups}, {seen.replicated} replicas more, {seen.retired} retired")
    lost = f"{seen.failures} nodes lost, and with them {share(counts, 'lost')} of answers"
    report.row(f"{nodes} nodes: failures", "", f"{lost}; {seen.brought_back} models brought back")
    refused = f"{share(counts, 'refused')}; without failures {share(calm, 'refused')}"
    report.row(f"{nodes} nodes: refused", "", refused)
    for why, count in seen.why.most_common():
        if why not in ("answered", "lost"):
            print(f"    {count} refused: {why}")
    fullest = max(node.fullest_percent for node in simulation.nodes.values())
    report.row(f"{nodes} nodes: the fullest node ever", "<= 95%", f"{fullest:.1f}%", ok=fullest <= 95.0)
    if nodes == max(options.nodes):
        over_time(report, simulation)
    return simulation


def over_time(report: Report, simulation: Simulation) -> None:
    for minute, seen in sorted(simulation.seen.by_minute.items()):
        half = simulation.plan.seconds / 2 / MINUTE
        chart = "% of requests, cold start" if minute < half - 1 else "% of requests, a tenth of all nodes lost"
        for line, count in (
            ("not warm", seen["all"] - seen["warm"]),
            ("refused", seen["refused"]),
            ("lost", seen["lost"]),
        ):
            report.point(chart, line, minute, 100 * count / seen["all"])


def time_decisions(report: Report, simulation: Simulation) -> None:
    """Each decision alone on the fleet as it stands at the end, in wall-clock microseconds."""
    views, nodes, draw = simulation.views, simulation.plan.nodes, random.Random(simulation.plan.seed)
    names = sorted(simulation.models)
    fleet, now = Fleet(), simulation.plan.seconds
    for view in views:
        fleet.report(view, now)
    gc.collect()
    gc.freeze()

    def placing(standings: list[Standing]) -> Callable[[], object]:
        return lambda: place("new", simulation.models[draw.choice(names)].needs, standings, now)

    roomy = [Standing(view) for view in views]
    full = [Standing(filled(view, idle=True)) for view in views]
    stuck = [Standing(filled(view, idle=False)) for view in views]
    known = Affinity()
    conversation = beginnings("m", [{"role": "user", "content": "x" * 4000}] * 8)
    known.remember(conversation[:6], views[0].id)
    held = [name for name in names if fleet.replicas(name)]
    timed = {
        "route": micros(lambda: route(fleet.replicas(draw.choice(held)), known.find(conversation))),
        "place": micros(placing(roomy)),
        "place, evicting": micros(placing(full)),
        "refuse": micros(placing(stuck), CALLS // 10),
        "report": micros(lambda: fleet.report(draw.choice(views), now)),
    }
    gc.unfreeze()
    for what, took in timed.items():
        p50, p99 = percentile(took, 0.5), percentile(took, 0.99)
        report.row(
            f"{nodes} nodes: {what}", "", f"{1e6 / (sum(took) / len(took)):,.0f}/s, p50 {p50:.0f} us, p99 {p99:.0f} us"
        )
        report.point("us for a decision", what, nodes, p50)


def time_heartbeats(report: Report, simulation: Simulation) -> None:
    """What a thousand nodes cost whoever listens, a frame a second from each."""
    views = simulation.views
    frames = [msgspec.msgpack.encode(view) for view in views]
    sizes = sorted(map(len, frames))
    decoder = msgspec.msgpack.Decoder(NodeView)
    some = [frames[n % len(frames)] for n in range(HEARTBEATS)]
    decoding = cpu_ms(lambda: [decoder.decode(frame) for frame in some])
    fleet = Fleet()
    decoded = [decoder.decode(frame) for frame in some]
    taking = cpu_ms(lambda: [fleet.report(view, 0.0) for view in decoded])
    seats = sorted(len(view.seats) for view in views)
    text = f"{sum(sizes) / len(sizes):.0f} bytes with {sum(seats) / len(seats):.1f} models"
    report.row("a node's frame", "", f"{text}; the largest {sizes[-1]} with {seats[-1]}")
    many = max(views, key=lambda view: len(view.seats))
    seats_of_ten, traffic_of_ten = (many.seats * 10)[:10], (many.traffic * 10)[:10]
    crowded = msgspec.structs.replace(many, seats=seats_of_ten, traffic=traffic_of_ten)
    report.row("a node's frame with 10 models", "", f"{len(msgspec.msgpack.encode(crowded))} bytes")
    total = sum(len(frame) for frame in some)
    text = f"{total / 1000:.0f} kB, {decoding:.1f} ms CPU to decode, {taking:.1f} ms to take in"
    report.row(f"{HEARTBEATS} frames, a second's worth", "", text)
    turns = [{"role": "user", "content": "x" * 4000}] * 8
    hashing = micros(lambda: beginnings("m", turns))
    report.row("keys of a conversation of 8 messages, 32 kB", "", f"p50 {percentile(hashing, 0.5):.0f} us")


def filled(view: NodeView, *, idle: bool) -> NodeView:
    """The node with nothing left: other programs hold the rest, and its models may be evicted or not."""
    if view.sample is None:
        return view
    seats = tuple(msgspec.structs.replace(seat, idle=idle, loaded=True, leaving=False) for seat in view.seats)
    total = view.sample.binding.total
    claims = sum(seat.claim_bytes for seat in seats)
    used = int(total * view.critical_percent / 100) - claims
    sample = msgspec.structs.replace(view.sample, readings=(Reading("host", total, used),))
    return msgspec.structs.replace(view, sample=sample, seats=seats)


def run(plan: Plan) -> Simulation:
    simulation = Simulation(plan)
    simulation.run()
    return simulation


def simulation_counts(simulation: Simulation) -> Counter[str]:
    counts: Counter[str] = sum(simulation.seen.by_minute.values(), Counter())
    for node in simulation.nodes.values():
        counts.update(evictions=node.evictions, cleaned=node.cleaned, loads=node.loads)
    counts["cold"] = counts["all"] - counts["warm"]
    return counts


def share(counts: Counter[str], what: str) -> str:
    return f"{100 * counts[what] / max(1, counts['all']):.2f}%"


def micros(what: Callable[[], object], calls: int = CALLS) -> list[float]:
    took = []
    for _ in range(calls):
        began = time.perf_counter_ns()
        what()
        took.append((time.perf_counter_ns() - began) / 1000)
    return took


def cpu_ms(what: Callable[[], object]) -> float:
    """The best of five."""
    took = []
    for _ in range(5):
        began = time.process_time()
        what()
        took.append(1000 * (time.process_time() - began))
    return min(took)


if __name__ == "__main__":
    main()
