"""What one ModelActor shows of itself: its usage at every moment, and the rest of its status when that has changed."""

from typing import NamedTuple

from plimsoll.actors.idle_and_drain import Idleness, UnloadOrders
from plimsoll.actors.messages import Ref, StateChanged, tell
from plimsoll.actors.model_load import Loading
from plimsoll.actors.model_requests import Requests
from plimsoll.actors.status import LiveUsage, ModelStatus, State, Usage, since_when_still, with_usage
from plimsoll.actors.worker_deaths import Failures
from plimsoll.actors.worker_life import WorkerLife
from plimsoll.engine.protocol import ModelInfo


class Parts(NamedTuple):
    """The parts of a ModelActor that its status is read from."""

    requests: Requests
    worker: WorkerLife
    loading: Loading
    unloading: UnloadOrders
    idleness: Idleness
    failures: Failures


class PublishedStatus:
    """Owned by one ModelActor. ``newest`` is its status, as it was published last."""

    def __init__(self, name: str, life: str, supervisor: Ref, live: LiveUsage, parts: Parts) -> None:
        self._name = name
        self._life = life
        self._supervisor = supervisor
        self._live = live
        self._parts = parts
        self._told: ModelStatus | None = None
        self.newest: ModelStatus | None = None

    def publish(self, state: State, info: ModelInfo | None, now: float, patience_s: float) -> None:
        """Show the usage as it is now, and tell the Supervisor if anything else of the status has changed."""
        requests, worker, loading, unloading, idleness, failures = self._parts
        loads, progress = state == State.LOADING, loading.progress
        status = ModelStatus(
            self._name,
            state,
            active=requests.running,
            queued=requests.waiting,
            pinned=idleness.pinned,
            pid=worker.pid,
            last_used=idleness.last_used,
            idle_ttl_s=idleness.ttl_s,
            stage=progress.stage if loads else "",
            done_bytes=progress.done if loads else 0,
            total_bytes=progress.total if loads else 0,
            mlx_bytes=worker.mlx_bytes,
            info=info,
            error=failures.last.message if failures.last else "",
            more_pids=worker.more_pids,
            hosts=tuple(worker.hosts.values()),
            until_eased=state == State.DRAINING and unloading.until_eased,
        )
        usage = requests.usage(status.last_used, since_when_still(self.newest, status, now), patience_s)
        self.newest = with_usage(status, usage)
        self._live.newest = usage
        lasting = with_usage(status, Usage())
        if lasting != self._told:
            self._told = lasting
            tell(self._supervisor, StateChanged(self._name, self._life, status))
