"""Device memory of NVIDIA GPUs, by a made-up NVML: what counts, what is told of single processes, what may fail."""

import logging
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from plimsoll.memory.sample import Reading, Tracked
from plimsoll.memory.sources import nvidia
from plimsoll.memory.sources.nvidia import DeviceMemory, NvmlReader, PatientReader, visible

GIB = 1024**3
MIB = 1024**2


class FakeNvml:
    """The module pynvml on a machine with GPUs of 80 GiB. ``gpus`` holds the used bytes, ``running`` bytes by pid."""

    class NVMLError(Exception):
        pass

    class NVMLError_NotSupported(NVMLError):  # noqa: N801 - its own name
        pass

    def __init__(self, *used_gib: float) -> None:
        self.used = [int(used * GIB) for used in used_gib]
        self.running: list[dict[int, int | None]] = [{} for _ in used_gib]
        self.shared: set[int] = set()
        self.silent: set[int] = set()
        self.broken: Exception | None = None
        self.opened = 0

    def nvmlInit(self) -> None:  # noqa: N802
        self.opened += 1
        if self.broken:
            raise self.broken

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.used)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> bytes:  # noqa: N802 - old versions give bytes
        return f"GPU-{'abc'[handle]}{handle}".encode()

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
        if self.broken:
            raise self.broken
        if handle in self.shared:
            raise self.NVMLError_NotSupported
        return SimpleNamespace(total=80 * GIB, used=self.used[handle])

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:  # noqa: N802
        if handle in self.silent:
            raise self.NVMLError_NotSupported
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in self.running[handle].items()]


def reader(nvml: FakeNvml, **environment: str) -> NvmlReader:
    return NvmlReader(lambda: nvml, environment)


def used(found: DeviceMemory) -> dict[str, float]:
    return {one.source: one.used / GIB for one in found.readings}


def test_the_gpu_that_models_compute_on_is_a_source() -> None:
    assert reader(FakeNvml(20))((), 0.0).readings == (Reading("accelerator:0", 80 * GIB, 20 * GIB),)


def test_another_gpu_counts_once_a_process_of_ours_was_seen_on_it() -> None:
    nvml = FakeNvml(20, 79)
    read = reader(nvml)
    nvml.running[1] = {666: 79 * GIB}
    assert used(read((10,), 0.0)) == {"accelerator:0": 20}
    nvml.running[1] = {666: 60 * GIB, 10: 19 * GIB}
    assert used(read((10,), 0.1)) == {"accelerator:0": 20, "accelerator:1": 79}
    nvml.running[1], nvml.used[1] = {666: 60 * GIB}, 60 * GIB
    assert used(read((10,), 0.2)) == {"accelerator:0": 20, "accelerator:1": 60}, "what came back has to be seen"


def test_what_a_process_holds_is_summed_over_gpus() -> None:
    nvml = FakeNvml(20, 30)
    nvml.running = [{10: 2 * GIB, 11: None}, {10: 3 * GIB}]
    assert reader(nvml)((10, 11), 0.0).processes == {10: 5 * GIB}


def test_a_driver_that_tells_nothing_of_processes_still_tells_of_the_gpu() -> None:
    nvml = FakeNvml(20)
    nvml.silent = {0}
    assert reader(nvml)((10,), 0.0) == DeviceMemory((Reading("accelerator:0", 80 * GIB, 20 * GIB),), {})


def test_a_gpu_that_shares_the_hosts_memory_is_no_source() -> None:
    nvml = FakeNvml(0)
    nvml.shared = {0}
    assert reader(nvml)((), 0.0).readings == ()


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("2,0", [2, 0]),
        ("GPU-b", [1]),
        ("GPU-c2, GPU-a0", [2, 0]),
        ("1,9,0", [1]),
        ("1,1", [1]),
        ("GPU-", []),
    ],
)
def test_the_environment_says_which_gpus_are_there(setting: str | None, shown: list[int]) -> None:
    assert visible({0: "GPU-a0", 1: "GPU-b1", 2: "GPU-c2"}, setting) == shown


def test_the_first_visible_gpu_is_the_one_that_counts() -> None:
    assert used(reader(FakeNvml(20, 30), CUDA_VISIBLE_DEVICES="1,0")((), 0.0)) == {"accelerator:1": 30}


def test_a_driver_that_can_not_be_opened_is_tried_again_after_a_while() -> None:
    nvml = FakeNvml(20)
    nvml.broken = FakeNvml.NVMLError("driver not loaded")
    read = reader(nvml)
    for time_s in (0.0, 1.0, 29.0):
        with pytest.raises(FakeNvml.NVMLError, match="driver not loaded"):
            read((), time_s)
    assert nvml.opened == 1
    nvml.broken = None
    assert used(read((), 31.0)) == {"accelerator:0": 20}


def test_without_the_package_the_error_says_what_to_install() -> None:
    def missing() -> Any:
        raise ModuleNotFoundError("No module named 'pynvml'")

    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mlx-plimsoll\[cuda\]'"):
        NvmlReader(missing, {})((), 0.0)


def test_nothing_is_read_where_mlx_has_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "_is_installed", lambda name: False)
    assert nvidia.reader("linux") is None
    monkeypatch.setattr(nvidia, "_is_installed", lambda name: name == "mlx-cuda-13")
    assert nvidia.reader("darwin") is None
    assert nvidia.reader("linux", {}) is not None


def test_a_driver_that_hangs_costs_one_wait_and_is_taken_up_again() -> None:
    goes_on, asked = threading.Event(), []

    def read(own_pids: Any, time_s: float) -> DeviceMemory:
        asked.append(time_s)
        assert goes_on.wait(60)
        return DeviceMemory((Reading("accelerator:0", 10, int(time_s)),))

    patient = PatientReader(read, answer_s=0.02)
    for time_s in (1.0, 2.0):
        with pytest.raises(TimeoutError, match="does not answer"):
            patient((), time_s)
    goes_on.set()
    patient._answer_s = 20
    for time_s in range(3, 1000):  # until the old answer has come, which is thrown away
        try:
            found = patient((), float(time_s))
        except TimeoutError:
            continue
        assert asked == [1.0, float(time_s)]
        assert found.readings[0].used == time_s
        return
    pytest.fail("the driver's answer was not taken up again")


def test_what_the_driver_raises_reaches_the_caller() -> None:
    def read(own_pids: Any, time_s: float) -> DeviceMemory:
        raise FakeNvml.NVMLError("GPU is lost")

    patient = PatientReader(read)
    for _ in range(2):
        with pytest.raises(FakeNvml.NVMLError, match="GPU is lost"):
            patient((), 0.0)


# ---- in a sample


def test_a_full_gpu_is_the_binding_source_and_its_workers_hold_what_lies_there(machine: Any) -> None:
    nvml = FakeNvml(76)
    nvml.running[0] = {900_001: 30 * GIB, 666: 46 * GIB}
    machine.process(900_001, GIB)
    sample = machine.sampler(devices=reader(nvml))([Tracked(900_001, mlx_bytes=29 * GIB)])
    assert sample.binding == Reading("accelerator:0", 80 * GIB, 76 * GIB)
    assert sample.footprints[900_001] == 31 * GIB
    assert sample.device_bytes == {900_001: 30 * GIB}


def test_where_the_driver_does_not_say_the_workers_own_word_counts(machine: Any) -> None:
    nvml = FakeNvml(40)
    machine.process(900_001, GIB)
    machine.process(900_002, GIB)
    nvml.running[0] = {900_001: None}
    sample = machine.sampler(devices=reader(nvml))([Tracked(900_001, mlx_bytes=29 * GIB), Tracked(900_002)])
    assert sample.device_bytes == {900_001: 29 * GIB}
    assert sample.footprints[900_001] == 30 * GIB


def test_the_limit_counts_device_memory_too(machine: Any) -> None:
    nvml = FakeNvml(40)
    nvml.running[0] = {900_001: 30 * GIB}
    machine.process(900_001, GIB)
    sample = machine.sampler(devices=reader(nvml), limit_bytes=64 * GIB)([Tracked(900_001)])
    assert {one.source: one.used for one in sample.readings}["limit"] == 31 * GIB + 100 * MIB


def test_a_broken_driver_is_one_log_line_and_the_host_goes_on(machine: Any, caplog: pytest.LogCaptureFixture) -> None:
    nvml = FakeNvml(20)
    nvml.broken = FakeNvml.NVMLError("driver not loaded")
    sampler = machine.sampler(devices=reader(nvml))
    machine.process(900_001, GIB)
    with caplog.at_level(logging.INFO, "plimsoll.memory"):
        samples = [sampler([Tracked(900_001, mlx_bytes=5 * GIB)]) for _ in range(5)]
    assert [len(caplog.records), caplog.records[0].levelname] == [1, "WARNING"]
    assert "driver not loaded" in caplog.text
    assert {one.failed for one in samples} == {("accelerator",)}
    assert {one.binding.source for one in samples} == {"host"}
    assert samples[-1].footprints[900_001] == 6 * GIB, "what the worker says of itself still counts"


def test_without_a_gpu_a_sample_is_as_ever(machine: Any) -> None:
    machine.process(900_001, GIB)
    sample = machine.sampler()([Tracked(900_001, mlx_bytes=5 * GIB)])
    assert sample.device_bytes == {}
    assert sample.footprints[900_001] == GIB
