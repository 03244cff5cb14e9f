"""Memory of NVIDIA GPUs, by NVML: the package nvidia-ml-py, which comes with the extra ``cuda``.

Nothing here is imported where MLX's CUDA build is not installed. What a stuck driver does not answer costs one thread.
"""

import importlib
import os
import queue
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from importlib import metadata
from typing import Any

import msgspec

from plimsoll.memory.sample import DEVICE_PREFIX, Reading

_CUDA_BUILDS = ("mlx-cuda", "mlx-cuda-12", "mlx-cuda-13")
# A driver that works answers in a few milliseconds, also while a GPU computes.
_ANSWER_S = 1.0
# A driver that could not be opened is tried again so often.
_AGAIN_S = 30.0


def cuda_is_installed() -> bool:
    """Whether MLX's CUDA build is there, so that models compute on an NVIDIA GPU."""
    return any(_is_installed(name) for name in _CUDA_BUILDS)


def _is_installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


class DeviceMemory(msgspec.Struct, frozen=True):
    """The memory of all GPUs that count, and what the driver tells of single processes: bytes by pid."""

    readings: tuple[Reading, ...] = ()
    processes: dict[int, int] = {}


DeviceReader = Callable[[Collection[int], float], DeviceMemory]
"""Reads the GPUs at a moment of the monotonic clock, given the pids of our own processes. Raises whatever it likes."""


def reader(platform: str = sys.platform, environment: Mapping[str, str] = os.environ) -> DeviceReader | None:
    """How to read this machine's NVIDIA GPUs; None where no model computes on one."""
    if platform != "linux" or not cuda_is_installed():
        return None
    return PatientReader(NvmlReader(lambda: importlib.import_module("pynvml"), environment))


class NvmlReader:
    """Asks the driver. Not for several threads at once.

    A GPU counts if MLX computes on it: the first one that ``CUDA_VISIBLE_DEVICES`` leaves, and every other one that is
    left on which a process of ours was seen. Others may be full without any harm to us. A GPU that shares the host's
    memory has no memory of its own to report; the host's figures have it all.
    """

    def __init__(self, module: Callable[[], Any], environment: Mapping[str, str]) -> None:
        self._module = module
        self._visible = environment.get("CUDA_VISIBLE_DEVICES")
        self._nvml: Any = None
        self._handles: dict[int, Any] = {}
        self._used: set[int] = set()
        self._failure: tuple[float, Exception] | None = None

    def __call__(self, own_pids: Collection[int], time_s: float) -> DeviceMemory:
        if self._nvml is None:
            self._open(time_s)
        readings, processes = list[Reading](), dict[int, int]()
        for place, (index, handle) in enumerate(self._handles.items()):
            held = self._processes(handle)
            if place == 0 or any(pid in held for pid in own_pids):
                self._used.add(index)
            for pid, size in held.items():
                processes[pid] = processes.get(pid, 0) + size
            if index in self._used and (reading := self._reading(index, handle)):
                readings.append(reading)
        return DeviceMemory(tuple(readings), {pid: size for pid, size in processes.items() if size > 0})

    def _open(self, time_s: float) -> None:
        if self._failure and time_s - self._failure[0] < _AGAIN_S:
            raise self._failure[1]
        try:
            nvml = self._module()
            nvml.nvmlInit()
            handles = {index: nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())}
            names = {index: str(_text(nvml.nvmlDeviceGetUUID(handle))) for index, handle in handles.items()}
            self._handles = {index: handles[index] for index in visible(names, self._visible)}
        except ModuleNotFoundError as error:
            sentence = "device memory can't be read without nvidia-ml-py: pip install 'mlx-plimsoll[cuda]'"
            self._failure = (time_s, ModuleNotFoundError(sentence))
            raise self._failure[1] from error
        except Exception as error:
            self._failure = (time_s, error)
            raise
        self._nvml, self._failure = nvml, None

    def _reading(self, index: int, handle: Any) -> Reading | None:
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        except self._nvml.NVMLError_NotSupported:
            return None
        total, used = int(memory.total), int(memory.used)
        if total <= 0:
            raise ValueError(f"GPU {index} with {total} bytes of memory")
        return Reading(f"{DEVICE_PREFIX}{index}", total, min(max(used, 0), total))

    def _processes(self, handle: Any) -> dict[int, int]:
        """Bytes by pid; 0 where the driver names a process and not its share, as in some containers."""
        try:
            running = self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except self._nvml.NVMLError:
            return {}
        return {int(one.pid): int(one.usedGpuMemory or 0) for one in running}


def visible(names: Mapping[int, str], setting: str | None) -> list[int]:
    """The GPUs that CUDA shows to a program, in its order; ``names`` are their UUIDs by number.

    ``setting`` is ``CUDA_VISIBLE_DEVICES``: numbers or beginnings of UUIDs. As in CUDA the first that is wrong ends the
    list, so "-1" and an empty text hide all.
    """
    if setting is None:
        return list(names)
    shown: list[int] = []
    for entry in (one.strip() for one in setting.split(",")):
        if entry.isdecimal():
            found = [index for index in names if index == int(entry)]
        else:
            found = [index for index, name in names.items() if entry and name.startswith(entry)]
        if len(found) != 1 or found[0] in shown:
            break
        shown += found
    return shown


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


class PatientReader:
    """Has a thread ask the driver, and waits ``answer_s`` for it: a driver that hangs must not stop the samples."""

    def __init__(self, read: DeviceReader, answer_s: float = _ANSWER_S) -> None:
        self._read = read
        self._answer_s = answer_s
        self._asked: queue.SimpleQueue[tuple[Collection[int], float]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[DeviceMemory | Exception] = queue.SimpleQueue()
        self._open = 0
        self._thread: threading.Thread | None = None

    def __call__(self, own_pids: Collection[int], time_s: float) -> DeviceMemory:
        """Raises what the driver raised, and ``TimeoutError`` until it answers again."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="plimsoll-nvml", daemon=True)
            self._thread.start()
        late = self._open
        if not late:
            self._asked.put((own_pids, time_s))
            self._open = 1
        try:
            # An answer to an earlier question is old: it only says that the driver is back.
            answer = self._answers.get(timeout=self._answer_s if not late else 0.001)
        except queue.Empty:
            raise TimeoutError("the NVIDIA driver does not answer") from None
        self._open = 0
        if late:
            return self(own_pids, time_s)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _serve(self) -> None:
        while True:
            own_pids, time_s = self._asked.get()
            try:
                self._answers.put(self._read(own_pids, time_s))
            except Exception as error:  # noqa: BLE001 - whatever the driver's library raises, the caller gets it
                self._answers.put(error)
