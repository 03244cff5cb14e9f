"""Levels, what fits, leases, attribution and reclaim where models lie in a GPU's own memory; figures in GiB."""

from typing import Any

import msgspec
import pytest

from plimsoll.memory.lease import LeaseRequest, decide_lease
from plimsoll.memory.ledger import Need, Seat, foresee, most_bytes, plan
from plimsoll.memory.levels import LevelState, Thresholds, advance
from plimsoll.memory.memory_errors import external, never_fits, no_room, out_of_memory
from plimsoll.memory.reclaim import TIMEOUT_S, begin, judge
from plimsoll.memory.sample import Level, Reading, Sample

GIB = 1024**3


def memory(
    gpu: float, host: float = 10, *more: Reading, time_s: float = 0.0, held: dict[int, float] | None = None
) -> Sample:
    """A GPU of 80 GiB in a machine of 32; ``held`` is device memory by pid, each process has 1 GiB besides."""
    device = {pid: int(size * GIB) for pid, size in (held or {}).items()}
    readings = (Reading("host", 32 * GIB, int(host * GIB)), Reading("accelerator:0", 80 * GIB, int(gpu * GIB)), *more)
    footprints = {pid: size + GIB for pid, size in device.items()}
    return Sample(time_s, readings, footprints=footprints, device_bytes=device)


def seat(name: str, holds: float, reserved: float | None = None, **flags: Any) -> Seat:
    flags = {"idle": True, **flags}
    granted = int((holds + 1 if reserved is None else reserved) * GIB)
    return Seat(name, granted, int((holds + 1) * GIB), device_bytes=int(holds * GIB), **flags)


@pytest.mark.parametrize(
    ("gpu", "level"),
    [(60, Level.NORMAL), (69, Level.WARNING), (77, Level.CRITICAL), (79, Level.EMERGENCY)],
)
def test_a_gpu_that_fills_raises_the_level(gpu: float, level: Level) -> None:
    state = LevelState()
    for time_s in (0.0, 0.1):
        state = advance(state, memory(gpu, time_s=time_s), Thresholds())
    assert state.level is level
    assert memory(gpu).source_of(level, Thresholds().of(level)) == "accelerator:0"


def test_a_model_larger_than_the_hosts_memory_fits_on_the_gpu() -> None:
    assert plan(60 * GIB, [], memory(gpu=5), 95.0).verdict == "load"
    assert most_bytes(memory(gpu=5), 95.0) == 76 * GIB


def test_a_model_that_would_fill_the_gpu_is_refused_with_its_figures() -> None:
    sample = memory(gpu=40)
    refused = plan(60 * GIB, [], sample, 95.0)
    assert refused.verdict == "refuse"
    assert refused.available_bytes == 36 * GIB
    assert refused.percent_after == 125.0
    error = no_room("m", refused, sample)
    assert "36.0 GiB are left" in error.message
    assert error.details["binding_source"] == "accelerator:0"


def test_what_can_never_fit_is_measured_by_the_gpu() -> None:
    sample = memory(gpu=0)
    refused = plan(77 * GIB, [], sample, 95.0)
    assert refused.verdict == "never"
    assert "77.0 GiB of 80.0 GiB" in never_fits("m", refused, sample).message


def test_an_idle_model_on_the_gpu_makes_room_there() -> None:
    answer = plan(40 * GIB, [seat("old", 35, last_used=1), seat("new", 20, last_used=2)], memory(gpu=60), 95.0)
    assert (answer.verdict, answer.victims) == ("evict", ("old",))


def test_a_grant_counts_until_it_lies_on_the_gpu() -> None:
    loading = seat("a", holds=5, reserved=50, loaded=False)
    assert plan(40 * GIB, [loading], memory(gpu=10), 95.0).verdict == "line"
    assert plan(20 * GIB, [loading], memory(gpu=10), 95.0).verdict == "load"


def test_a_full_host_has_no_room_for_one_more_process() -> None:
    assert plan(GIB, [], memory(gpu=5, host=30.3), 95.0).verdict == "refuse"
    assert plan(GIB, [], memory(gpu=5, host=29), 95.0).verdict == "load"


def test_two_gpus_bind_by_the_fuller_one() -> None:
    second = Reading("accelerator:1", 80 * GIB, 70 * GIB)
    assert plan(10 * GIB, [], memory(5, 10, second), 95.0).verdict == "refuse"


def test_a_plan_sees_the_memory_that_a_leaving_model_gives_back_on_the_gpu() -> None:
    need = Need(weights_bytes=40 * GIB, measured_bytes=40 * GIB)
    decision = foresee([need], [seat("old", 60)], memory(gpu=65), 95.0)
    assert decision.plan.verdict == "evict"
    assert decision.granted == need


def test_leases_grow_by_the_gpus_room() -> None:
    me = seat("m", 20)
    request = LeaseRequest(kv_bytes=GIB, wanted_bytes=11 * GIB, needed_bytes=11 * GIB)
    assert decide_lease(request, me, [], memory(gpu=21), 90.0).kv_bytes == 11 * GIB
    short = decide_lease(request, me, [], memory(gpu=70), 90.0)
    assert (short.verdict, short.kv_bytes, short.more) == ("grant", GIB, False)


def test_memory_that_others_hold_on_the_gpu_is_external() -> None:
    assert external(memory(gpu=78, held={1: 1}), 95)
    assert not external(memory(gpu=78, held={1: 40}), 95)
    # What our processes hold on the GPU is not the host's.
    assert external(memory(gpu=40, host=32, held={1: 40}), 95)


def test_an_emergency_names_the_gpu() -> None:
    assert "(accelerator:0)" in out_of_memory(memory(gpu=79), "m was stopped").message


def test_an_unload_is_done_when_the_gpu_shows_it() -> None:
    before = memory(gpu=60, held={1: 40})
    gone = msgspec.structs.replace(begin(seat("a", 40), "idle", before, now=0.0), exited_at=1.0)
    assert gone.expected_bytes == 40 * GIB
    # The host has its gigabyte back at once, and the driver is late.
    assert judge(gone, memory(gpu=59, host=9, time_s=1.1), now=1.1) is None
    outcome = judge(gone, memory(gpu=20, host=9, time_s=1.2), now=1.2)
    assert outcome is not None
    assert (outcome.verified, outcome.freed_bytes) == (True, 40 * GIB)


def test_it_is_the_gpu_too_where_the_host_is_fuller() -> None:
    before = memory(gpu=50, host=29, held={1: 40})
    gone = msgspec.structs.replace(begin(seat("a", 40), "critical", before, now=0.0), exited_at=1.0)
    outcome = judge(gone, memory(gpu=10, host=28, time_s=1.1), now=1.1)
    assert outcome is not None
    assert outcome.verified


def test_another_model_may_take_the_gpus_memory_meanwhile() -> None:
    before = memory(gpu=60, held={1: 40, 2: 10})
    gone = msgspec.structs.replace(begin(seat("a", 40), "idle", before, now=0.0), exited_at=1.0)
    outcome = judge(gone, memory(gpu=50, time_s=1.1, held={2: 40}), now=1.1)
    assert outcome is not None
    assert (outcome.verified, outcome.freed_bytes) == (True, 40 * GIB)


def test_device_memory_that_stays_is_said_plainly() -> None:
    before = memory(gpu=60, held={1: 40})
    gone = msgspec.structs.replace(begin(seat("a", 40), "idle", before, now=0.0), exited_at=1.0)
    late = 1.2 + TIMEOUT_S
    outcome = judge(gone, memory(gpu=60, time_s=late), now=late)
    assert outcome is not None
    assert (outcome.verified, outcome.freed_bytes) == (False, 0)
