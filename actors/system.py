"""The actor system of one server: what starts in which order, and stops in reverse."""

import contextlib
import logging
import os
import shlex
import sys
import threading
from concurrent.futures import Future
from typing import Any

import pykka

from plimsoll.actors import load_needs
from plimsoll.actors import messages as m
from plimsoll.actors.memory_view import Gauge
from plimsoll.actors.model import ModelActor, ModelSettings
from plimsoll.actors.settings import Settings
from plimsoll.actors.spare_worker import SpareWorker
from plimsoll.actors.status import LiveUsage
from plimsoll.actors.supervisor import Supervisor
from plimsoll.actors.timers import ThreadTimers
from plimsoll.actors.watchdog import Watchdog
from plimsoll.actors.watchdog_supervision import WatchdogSupervision
from plimsoll.actors.worker_life import Effects, OnWeighed
from plimsoll.catalog.entries import CatalogModel
from plimsoll.catalog.installed import default_cache_dir
from plimsoll.catalog.names import Catalog
from plimsoll.catalog.source import Group
from plimsoll.config import Config
from plimsoll.engine.handle.environment import default_stop_grace_s, worker_environment
from plimsoll.engine.handle.process import OnEvent, OnExit, Worker, WorkerProcess
from plimsoll.engine.protocol import EngineOptions
from plimsoll.journal import events
from plimsoll.journal.journal import Journal
from plimsoll.memory.ledger import Need
from plimsoll.memory.sample import Level, Sample, Sampler
from plimsoll.memory.sources import RecentMemory, SystemSampler, largest_others

log = logging.getLogger("plimsoll.memory")

# A worker that ignores everything is killed within this time after its grace.
STOP_MARGIN_S = 20.0
_ACTOR_STOP_S = 5.0


class ActorSystem:
    """Watchdog, Supervisor and timers of one configuration."""

    def __init__(
        self,
        config: Config,
        catalog: Catalog,
        sampler: Sampler | None = None,
        journal: Journal | None = None,
        footprints: dict[str, int] | None = None,
    ) -> None:
        """``footprints`` holds what models were seen to take by earlier runs, under ``load_needs.footprint_key``."""
        # As at the start. What may change while it runs is the Supervisor's, and comes with its calls.
        self._config = config
        self._catalog = catalog
        self._sampler = sampler
        self.journal = journal or Journal()
        self._footprints = dict(footprints or {})
        self._recent_memory = RecentMemory()
        # Held while somebody looks at every process, which may take long: one look at a time is enough.
        self._looks_at_others = threading.Lock()
        self._timers: ThreadTimers | None = None
        self._gauge = Gauge()
        self._environment: dict[str, str] = {}
        self.supervisor: m.Ref
        self._supervision: WatchdogSupervision

    def start(self) -> None:
        """Start everything; pinned models begin to load, and ``models.dir`` is looked at from now on."""
        self._catalog.look_again()
        settings = Settings.of(self._config)
        self._timers = ThreadTimers()
        self._environment = worker_environment(self._config.engine.blas, default_cache_dir(self._config))
        self._supervision = WatchdogSupervision(self._start_watchdog, settings, self._timers, self.journal)
        self.supervisor = Supervisor.start(
            self._catalog,
            settings,
            self.journal,
            supervision=self._supervision,
            start_model=self._start_model,
            on_external=self._note_external,
            on_settled=self._on_settled,
            spare=SpareWorker(self._spawn_spare, self._has_use_of_spare, str(default_cache_dir(self._config))),
            clock=self._timers.now,
        )

    def stop(self, grace_s: float) -> None:
        """Running answers get ``grace_s``, then every worker is stopped; returns when none is left."""
        stopped = Stopped()
        if m.tell(self.supervisor, m.StopAll(grace_s, stopped)):
            stopped.wait(grace_s + STOP_MARGIN_S)
        for ref in (self.supervisor, self._supervision.watchdog):
            with contextlib.suppress(pykka.Timeout):  # one that hangs ends with the process
                ref.stop(timeout=_ACTOR_STOP_S)
        if self._timers:
            self._timers.close()

    def weigh(self, model: CatalogModel) -> "Future[tuple[Need, ...]]":
        """As ``load_needs.weigh``, with what this server's models were seen to take."""
        return load_needs.weigh(model, self._config, self._footprints)

    def _start_watchdog(self, settings: Settings, level: Level) -> m.Ref:
        if self._sampler:
            noted = self._recent_memory.note_those_of(self._sampler)
            return Watchdog.start(noted, settings.thresholds, self.journal, level=level, gauge=self._gauge)
        # A sampler of its own: the former one may be held by a thread that is stuck in it.
        sampler = SystemSampler(limit_bytes=settings.limit_bytes)
        noted = self._recent_memory.note_those_of(sampler)
        options = {"level": level, "gauge": self._gauge}
        return Watchdog.start(noted, settings.thresholds, self.journal, sampler.set_limit, **options)

    def _start_model(self, model: CatalogModel, rules: m.Rules, supervisor: m.Ref, usage: LiveUsage) -> m.Ref:
        engine = self._config.engine
        stop_grace_s = default_stop_grace_s() if engine.stop_grace is None else engine.stop_grace
        options = EngineOptions(
            cache_dir=str(default_cache_dir(self._config)),
            offline=self._config.models.offline,
            context=model.context,
            max_batch=engine.max_batch,
            prompt_lookup=engine.prompt_lookup == "auto",
            prefill_chunk=engine.prefill_chunk,
            prompt_cache_bytes=None if engine.prompt_cache is None else int(engine.prompt_cache),
            # On disk there would be one rank's part of a conversation only.
            disk_cache_bytes=0 if model.group else int(engine.disk_cache),
            wired_bytes=None if engine.wired_memory is None else int(engine.wired_memory),
            adapter=model.source.adapter,
            embeddings=model.embeddings,
            chat_template=model.chat_template,
        )
        settings = ModelSettings(
            source=model.source,
            options=options,
            rules=rules,
            usage=usage,
            stop_grace_s=stop_grace_s,
            hang_after_s=engine.hang_after,
        )
        environment = {} if model.source.kind == "fake" else self._environment

        def spawn(on_event: OnEvent, on_exit: OnExit) -> Worker:
            if model.group:
                return self._spawn_group(model.group, model.first_port, environment, on_event, on_exit)
            return WorkerProcess(on_event, on_exit, environment, self._recent_memory.killed_one)

        def weigh(on_weighed: OnWeighed) -> None:
            self.weigh(model).add_done_callback(lambda ways: _tell_weighed(model, ways, on_weighed))

        assert self._timers is not None  # noqa: S101 - started before the Supervisor
        recent_samples = lambda: self._recent_memory.samples  # noqa: E731
        effects = Effects(spawn, self._timers, self.journal, weigh, recent_samples, gauge=self._gauge)
        if model.group:
            # A rank that waits for another one computes as far as the system can tell.
            effects = effects._replace(activity=lambda _pid: None)
        return ModelActor.start(settings, supervisor, effects)

    def _spawn_group(
        self, group: Group, port: int, environment: dict[str, str], on_event: OnEvent, on_exit: OnExit
    ) -> Worker:
        from plimsoll.engine.handle.worker_group import GroupSettings, WorkerGroup  # noqa: PLC0415 - most servers have none

        models, memory = self._config.models, self._config.memory
        settings = GroupSettings(
            group,
            shell=tuple(shlex.split(models.remote_shell)),
            python=models.remote_python or sys.executable,
            port=port,
            critical_percent=memory.critical_percent,
            emergency_percent=memory.emergency_percent,
        )
        return WorkerGroup(settings, on_event, on_exit, environment, self._recent_memory.killed_one)

    def _spawn_spare(self, on_event: OnEvent, on_exit: OnExit) -> Worker:
        return WorkerProcess(on_event, on_exit, self._environment, self._recent_memory.killed_one, warm=True)

    def _has_use_of_spare(self, model: CatalogModel) -> bool:
        return self._config.engine.spare_worker and model.source.kind != "fake" and model.group is None

    def _on_settled(self, model: CatalogModel, dequantized: bool, footprint_bytes: int) -> None:
        key = load_needs.footprint_key(model.source, dequantized, model.group)
        self._footprints[key] = footprint_bytes
        self.journal.peak(key, footprint_bytes)

    def _note_external(self, sample: Sample) -> None:
        """Name the largest other processes, on a thread: the one that holds a dead disk may hold who reads of it."""
        if self._looks_at_others.acquire(blocking=False):
            threading.Thread(target=self._look_at_others, args=(sample,), name="plimsoll-others", daemon=True).start()

    def _look_at_others(self, sample: Sample) -> None:
        try:
            self._record_others(sample)
        finally:
            self._looks_at_others.release()

    def _record_others(self, sample: Sample) -> None:
        own = {os.getpid(), *sample.footprints}
        others = tuple(events.OtherProcess(*one) for one in largest_others(own))
        ours_bytes = sum(sample.footprints.values())
        self.journal.record(events.ExternalPressure(sample.used_percent, ours_bytes, others))


def _tell_weighed(model: CatalogModel, ways: "Future[tuple[Need, ...]]", on_weighed: OnWeighed) -> None:
    try:
        on_weighed(ways.result(), "")
    except (OSError, ValueError) as error:
        on_weighed((), str(error))
    except Exception as error:
        # Whatever its files make a reader raise: who wants the model waits for this.
        log.exception("%s can't be weighed", model.source.name)
        on_weighed((), f"its files can't be weighed ({type(error).__name__}), the log says why")


class Stopped:
    """A reply that a thread can wait for."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def send(self, item: Any) -> None:  # noqa: ARG002 - that it comes is all it says
        self._event.set()

    def wait(self, timeout_s: float) -> bool:
        return self._event.wait(timeout_s)
