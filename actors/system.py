"""The actor system of one server: what starts in which order, and stops in reverse."""

import threading
from typing import Any

from plimsoll.actors import messages as m
from plimsoll.actors.model import ModelActor, ModelSettings
from plimsoll.actors.supervisor import Supervisor
from plimsoll.actors.timers import ThreadTimers
from plimsoll.actors.watchdog import Watchdog
from plimsoll.catalog import Catalog, default_cache_dir
from plimsoll.config import Config
from plimsoll.engine.environment import default_stop_grace_s, worker_environment
from plimsoll.engine.process import OnEvent, OnExit, Worker, WorkerProcess
from plimsoll.engine.protocol import EngineOptions
from plimsoll.memory import sources
from plimsoll.memory.levels import Thresholds
from plimsoll.memory.sample import Sampler

# A worker that ignores everything is killed within this time after its grace.
_STOP_MARGIN_S = 20.0


class ActorSystem:
    """Watchdog, Supervisor and timers of one configuration."""

    def __init__(self, config: Config, catalog: Catalog, sampler: Sampler = sources.sample) -> None:
        self._config = config
        self._catalog = catalog
        self._sampler = sampler
        self._timers: ThreadTimers | None = None
        self.supervisor: m.Ref
        self.watchdog: m.Ref

    def start(self) -> None:
        """Start everything; pinned models begin to load."""
        memory = self._config.memory
        thresholds = Thresholds(
            memory.warning_percent,
            memory.critical_percent,
            memory.emergency_percent,
            memory.hysteresis_percent,
            memory.clear_after,
        )
        self._timers = ThreadTimers()
        self.watchdog = Watchdog.start(self._sampler, thresholds)
        self.supervisor = Supervisor.start(
            self._catalog,
            thresholds,
            watchdog=self.watchdog,
            start_model=self._start_model,
            clock=self._timers.now,
            queue=self._config.models.queue,
        )

    def stop(self, grace_s: float) -> None:
        """Running answers get ``grace_s``, then every worker is stopped; returns when none is left."""
        stopped = _Stopped()
        if m.tell(self.supervisor, m.StopAll(grace_s, stopped)):
            stopped.wait(grace_s + _STOP_MARGIN_S)
        self.supervisor.stop()
        self.watchdog.stop()
        if self._timers:
            self._timers.close()

    def _start_model(self, name: str, supervisor: m.Ref) -> m.Ref:
        model = self._catalog.find(name)
        engine, memory = self._config.engine, self._config.memory
        stop_grace_s = default_stop_grace_s() if engine.stop_grace is None else engine.stop_grace
        options = EngineOptions(
            cache_dir=str(default_cache_dir(self._config)),
            budget_bytes=0,
            offline=self._config.models.offline,
            context=model.context,
            max_batch=engine.max_batch,
            prefill_chunk=engine.prefill_chunk,
            prompt_cache_bytes=int(engine.prompt_cache),
            dequantize=engine.dequantize,
        )
        settings = ModelSettings(
            source=model.source,
            options=options,
            pin=model.pin,
            idle_ttl_s=model.idle_ttl_s,
            queue=self._config.models.queue,
            critical_grace_s=memory.critical_grace,
            stop_grace_s=stop_grace_s,
        )
        environment = {} if model.source.kind == "fake" else worker_environment(engine.blas)

        def spawn(on_event: OnEvent, on_exit: OnExit) -> Worker:
            return WorkerProcess(on_event, on_exit, environment)

        assert self._timers is not None  # noqa: S101 - started before the Supervisor
        return ModelActor.start(settings, supervisor, spawn, self._timers)


class _Stopped:
    """A reply that a thread can wait for."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def send(self, item: Any) -> None:  # noqa: ARG002 - that it comes is all it says
        self._event.set()

    def wait(self, timeout_s: float) -> bool:
        return self._event.wait(timeout_s)
