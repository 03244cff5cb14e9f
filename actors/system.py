"""The actor system of one server: what starts in which order, and stops in reverse."""

import contextlib
import logging
import os
import shlex
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pykka

from plimsoll.actors import messages as m
from plimsoll.actors.keeper import Keeper
from plimsoll.actors.model import ModelActor, ModelSettings
from plimsoll.actors.spare import Spare
from plimsoll.actors.supervisor import Supervisor
from plimsoll.actors.timers import ThreadTimers
from plimsoll.actors.watchdog import Watchdog
from plimsoll.actors.worker_life import Effects, OnWeighed
from plimsoll.catalog import Catalog, CatalogModel, default_cache_dir
from plimsoll.catalog.weigh import weigh_source
from plimsoll.config import Config, MemoryConfig
from plimsoll.engine.environment import compute_device, default_stop_grace_s, worker_environment
from plimsoll.engine.process import OnEvent, OnExit, Worker, WorkerProcess
from plimsoll.engine.protocol import EngineOptions, Group, ModelSource
from plimsoll.journal import events
from plimsoll.journal.journal import Journal
from plimsoll.memory.levels import Thresholds
from plimsoll.memory.needs import Weight, ways_to_load
from plimsoll.memory.plan import Need
from plimsoll.memory.sample import Level, Sample, Sampler
from plimsoll.memory.sources import SystemSampler, largest_others, oom_kills

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
        """``footprints`` holds what models were seen to take by earlier runs, under ``footprint_key``."""
        # As at the start. What may change while it runs is the Supervisor's, and comes with its calls.
        self._config = config
        self._catalog = catalog
        self._sampler = sampler
        self.journal = journal or Journal()
        self._footprints = dict(footprints or {})
        # For the few things that look at a disk or at every process: no actor waits for them.
        self._background = ThreadPoolExecutor(2, "plimsoll-background")
        self._timers: ThreadTimers | None = None
        self._environment: dict[str, str] = {}
        self.supervisor: m.Ref
        self._keeper: Keeper

    def start(self) -> None:
        """Start everything; pinned models begin to load."""
        memory = self._config.memory
        thresholds = thresholds_of(memory)
        self._timers = ThreadTimers()
        self._environment = worker_environment(self._config.engine.blas, default_cache_dir(self._config))
        limit = None if memory.limit is None else int(memory.limit)
        self._keeper = Keeper(self._start_watchdog, m.Marks(thresholds, limit), self._timers, self.journal)
        self.supervisor = Supervisor.start(
            self._catalog,
            thresholds,
            self.journal,
            keeper=self._keeper,
            start_model=self._start_model,
            on_external=lambda sample: self._background.submit(self._note_external, sample),
            on_settled=self._on_settled,
            spare=Spare(self._spawn_spare, self._has_use_of_spare, str(default_cache_dir(self._config))),
            clock=self._timers.now,
            queue=self._config.models.queue,
            critical_grace_s=memory.critical_grace,
        )

    def stop(self, grace_s: float) -> None:
        """Running answers get ``grace_s``, then every worker is stopped; returns when none is left."""
        stopped = Stopped()
        if m.tell(self.supervisor, m.StopAll(grace_s, stopped)):
            stopped.wait(grace_s + STOP_MARGIN_S)
        for ref in (self.supervisor, self._keeper.watchdog):
            with contextlib.suppress(pykka.Timeout):  # one that hangs ends with the process
                ref.stop(timeout=_ACTOR_STOP_S)
        if self._timers:
            self._timers.close()
        self._background.shutdown(wait=False, cancel_futures=True)

    def ways_to_load(self, model: CatalogModel) -> tuple[Need, ...]:
        """The ways to load ``model``, none while its files are not here. Reads headers from disk.

        Raises ``OSError`` or ``ValueError`` for files that can't be read.
        """
        weight = weigh_source(model.source, default_cache_dir(self._config), model.group)
        return () if weight is None else self.ways_for(model, weight)

    def ways_for(self, model: CatalogModel, weight: Weight) -> tuple[Need, ...]:
        """The ways to load ``model`` if it, or one rank's share of it, weighs that much."""
        engine = self._config.engine
        hosts = model.group.hosts if model.group else ()
        here = sum(host.here for host in hosts) or 1
        measured = {
            dense: self._footprints.get(footprint_key(model.source, dense, model.group), 0) // here
            for dense in (False, True)
        }
        ways = ways_to_load(
            weight,
            device=compute_device(),
            dequantize=engine.dequantize,
            context=model.context,
            kv_budget_bytes=None if engine.kv_budget is None else int(engine.kv_budget) // (len(hosts) or 1),
            measured=measured,
        )
        return ways if here == 1 else tuple(need.times(here) for need in ways)

    def _start_watchdog(self, marks: m.Marks, level: Level) -> m.Ref:
        if self._sampler:
            return Watchdog.start(self._sampler, marks.thresholds, self.journal, level=level)
        # A sampler of its own: the former one may be held by a thread that is stuck in it.
        sampler = SystemSampler(limit_bytes=marks.limit_bytes)
        return Watchdog.start(sampler, marks.thresholds, self.journal, sampler.set_limit, level)

    def _start_model(self, model: CatalogModel, rules: m.Rules, supervisor: m.Ref) -> m.Ref:
        engine = self._config.engine
        stop_grace_s = default_stop_grace_s() if engine.stop_grace is None else engine.stop_grace
        options = EngineOptions(
            cache_dir=str(default_cache_dir(self._config)),
            offline=self._config.models.offline,
            context=model.context,
            max_batch=engine.max_batch,
            prefill_chunk=engine.prefill_chunk,
            prompt_cache_bytes=int(engine.prompt_cache),
            # On disk there would be one rank's part of a conversation only.
            disk_cache_bytes=0 if model.group else int(engine.disk_cache),
            adapter=model.source.adapter,
            embeddings=model.embeddings,
        )
        settings = ModelSettings(
            source=model.source,
            options=options,
            rules=rules,
            stop_grace_s=stop_grace_s,
            hang_after_s=engine.hang_after,
        )
        environment = {} if model.source.kind == "fake" else self._environment

        def spawn(on_event: OnEvent, on_exit: OnExit) -> Worker:
            if model.group:
                return self._spawn_group(model.group, model.first_port, environment, on_event, on_exit)
            return WorkerProcess(on_event, on_exit, environment, oom_kills)

        def weigh(on_weighed: OnWeighed) -> None:
            self._background.submit(self._weigh, model, on_weighed)

        assert self._timers is not None  # noqa: S101 - started before the Supervisor
        effects = Effects(spawn, self._timers, self.journal, weigh)
        if model.group:
            # A rank that waits for another one computes as far as the system can tell.
            effects = effects._replace(activity=lambda _pid: None)
        return ModelActor.start(settings, supervisor, effects)

    def _spawn_group(
        self, group: Group, port: int, environment: dict[str, str], on_event: OnEvent, on_exit: OnExit
    ) -> Worker:
        from plimsoll.engine.worker_group import GroupSettings, WorkerGroup  # noqa: PLC0415 - most servers have none

        models, memory = self._config.models, self._config.memory
        settings = GroupSettings(
            group,
            shell=tuple(shlex.split(models.remote_shell)),
            python=models.remote_python or sys.executable,
            port=port,
            critical_percent=memory.critical_percent,
            emergency_percent=memory.emergency_percent,
        )
        return WorkerGroup(settings, on_event, on_exit, environment, oom_kills)

    def _spawn_spare(self, on_event: OnEvent, on_exit: OnExit) -> Worker:
        return WorkerProcess(on_event, on_exit, self._environment, oom_kills, warm=True)

    def _has_use_of_spare(self, model: CatalogModel) -> bool:
        return self._config.engine.spare_worker and model.source.kind != "fake" and model.group is None

    def _weigh(self, model: CatalogModel, on_weighed: OnWeighed) -> None:
        try:
            on_weighed(self.ways_to_load(model), "")
        except (OSError, ValueError) as error:
            on_weighed((), str(error))
        except Exception as error:
            # Whatever its files make a reader raise: who wants the model waits for this.
            log.exception("%s can't be weighed", model.source.name)
            on_weighed((), f"its files can't be weighed ({type(error).__name__}), the log says why")

    def _on_settled(self, model: CatalogModel, dequantized: bool, footprint_bytes: int) -> None:
        key = footprint_key(model.source, dequantized, model.group)
        self._footprints[key] = footprint_bytes
        self.journal.peak(key, footprint_bytes)

    def _note_external(self, sample: Sample) -> None:
        own = {os.getpid(), *sample.footprints}
        others = tuple(events.OtherProcess(*one) for one in largest_others(own))
        ours_bytes = sum(sample.footprints.values())
        self.journal.record(events.ExternalPressure(sample.used_percent, ours_bytes, others))


def thresholds_of(memory: MemoryConfig) -> Thresholds:
    """The section's thresholds."""
    return Thresholds(
        memory.warning_percent,
        memory.critical_percent,
        memory.emergency_percent,
        memory.hysteresis_percent,
        memory.clear_after,
    )


def footprint_key(source: ModelSource, dequantized: bool, group: Group | None = None) -> str:
    """The name under which a model's footprint is kept over restarts."""
    split = f":{sum(host.here for host in group.hosts)} of {len(group.hosts)} {group.split}" if group else ""
    files = f"{source.location}+{source.adapter}" if source.adapter else source.location
    return f"{source.kind}:{files}:{'dense' if dequantized else 'stored'}{split}"


class Stopped:
    """A reply that a thread can wait for."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def send(self, item: Any) -> None:  # noqa: ARG002 - that it comes is all it says
        self._event.set()

    def wait(self, timeout_s: float) -> bool:
        return self._event.wait(timeout_s)
