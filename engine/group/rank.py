"""One rank of a worker group, seen from within its process: the way into MLX's group, and what its host has left."""

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
from mlx import nn

from plimsoll.engine.group.group_ops import Op
from plimsoll.engine.group.splitting import split_model
from plimsoll.engine.load.weights import on_the_cpu
from plimsoll.engine.protocol import HostMemory, JoinGroup, Replay
from plimsoll.memory.levels import Thresholds, next_interval_s
from plimsoll.memory.sources import SystemSampler

# A change of memory use that is worth a word to the front: a part of what is left, so the fuller the finer.
_WORTH = 0.05
_LEAST_PERCENT = 0.1


class Rank:
    """The first rank is rank 0: it decides, and tells the others its operations."""

    def __init__(self, join: JoinGroup, send: Callable[[HostMemory | Replay], object]) -> None:
        """``send`` may be called from any thread."""
        self._join = join
        self._send = send
        self._group: mx.distributed.Group | None = None
        threading.Thread(target=self._watch_memory, name="host-memory", daemon=True).start()

    @property
    def leads(self) -> bool:
        return self._join.rank == 0

    def tell(self, op: Op) -> None:
        """Have the others do what is done here next."""
        self._send(Replay(op))

    def any_of(self, fact: bool) -> bool:
        """Whether the fact is true on any rank; all ranks ask at the same place, after the model is split."""
        total = mx.distributed.all_sum(mx.array(int(fact)), group=self._group)
        return bool(total.item())

    def split(self, model: nn.Module, *, dequantize: bool) -> nn.Module:
        """Leave of a model that was loaded lazily what this rank computes. Raises ``LoadFailed``."""
        self._group = self.connect()
        return split_model(model, self._group, self._join.group.split, dequantize=dequantize)

    def connect(self) -> mx.distributed.Group:
        """MLX's group; waits for the other ranks. Raises ``RuntimeError`` where they can't be reached."""
        group = self._join.group
        file = _write(_ring(self._join) if group.backend == "ring" else [list(host.rdma) for host in group.hosts])
        os.environ["MLX_RANK"] = str(self._join.rank)
        if group.backend == "ring":
            os.environ["MLX_HOSTFILE"] = str(file)
        else:
            os.environ["MLX_IBV_DEVICES"] = str(file)
            os.environ["MLX_JACCL_COORDINATOR"] = f"{group.hosts[0].address}:{self._join.ports[0]}"
        try:
            return mx.distributed.init(strict=True, backend=group.backend)
        finally:
            file.unlink()

    def _watch_memory(self) -> None:
        """Tell the front what this host says: at once, and whenever it has changed."""
        sampler, told = SystemSampler(), -100.0
        while True:
            interval_s = 1.0
            try:
                sample = sampler()
            except OSError:
                pass  # what it said last stays true for the front, and the next look may succeed
            else:
                interval_s = next_interval_s(sample, Thresholds())
                worth = max(_LEAST_PERCENT, _WORTH * (100 - sample.used_percent))
                if abs(sample.used_percent - told) >= worth:
                    told = sample.used_percent
                    readings = [(one.source, one.total, one.used) for one in sample.readings]
                    self._send(HostMemory(readings, "cpu" if on_the_cpu() else "gpu"))
            time.sleep(interval_s)


def _ring(join: JoinGroup) -> list[list[str]]:
    return [[f"{host.address}:{port}"] for host, port in zip(join.group.hosts, join.ports, strict=True)]


def _write(content: object) -> Path:
    with tempfile.NamedTemporaryFile("w", prefix="plimsoll-group-", suffix=".json", delete=False) as file:
        json.dump(content, file)
    return Path(file.name)
