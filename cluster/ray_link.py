"""The way to the nodes by Ray: a loop on a thread of its own, on which every call to Ray is awaited."""

import asyncio
import contextlib
import itertools
import logging
import threading
from collections.abc import Coroutine
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from plimsoll import __version__
from plimsoll.cluster import node_protocol
from plimsoll.cluster.node_protocol import FromNode, NodeJoined, NodeLeft, Target
from plimsoll.cluster.node_server import NodeServer

_log = logging.getLogger("plimsoll.cluster")

RESOURCE = "plimsoll_mib"
MIB = 1024**2
_WATCH_S = 1.0
# Seconds until a lost node is started again; where the start fails, twice as long each time up to a bound.
_AGAIN_S = 5.0
_AGAIN_MOST_S = 60.0
_START_S = 60.0
_SILENT_S = 15.0


class RayLink:
    """One life of each node that has the resource: found, started, polled until it is gone."""

    def __init__(self, settings: str) -> None:
        """``settings`` is the configuration as YAML, for the nodes to start with."""
        self._settings = settings
        self._target: Target
        self._lives: dict[str, _Life] = {}
        self._numbers = itertools.count(1)
        self._rests: dict[str, _Rest] = {}
        self._blind = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cluster-link", daemon=True)
        self._unheard: set[str] | None = None
        self.settled = threading.Event()
        """Set when all nodes that were there at the start have said something or were given up."""

    def start(self, target: Target) -> None:
        """Tell ``target`` what happens to nodes from now on."""
        self._target = target
        self._thread.start()
        self._loop.call_soon_threadsafe(self._go, self._watch())

    def send(self, node: str, command: node_protocol.Command) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and every node's process ended
            self._loop.call_soon_threadsafe(self._send, node, command)

    def drop(self, node: str, why: str) -> None:
        with contextlib.suppress(RuntimeError):  # as above
            self._loop.call_soon_threadsafe(self._drop, node, why)

    def close(self) -> None:
        """End every node's processes and leave Ray; blocks for as long as that takes."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._end_tasks(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
        for life in self._lives.values():
            _kill(life.actor)
        ray.shutdown()

    # ---- on the loop

    async def _end_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _go(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _send(self, node: str, command: node_protocol.Command) -> None:
        if life := self._lives.get(node):
            life.outgoing.append(command)
            if not life.delivering:
                # Commands that the Dispatcher sends in one go leave in one call.
                life.delivering = True
                self._go(self._deliver(life))

    async def _deliver(self, life: "_Life") -> None:
        """One call at a time: Ray carries out the calls of one asyncio actor in any order, a large one after others."""
        try:
            while life.outgoing:
                frame = node_protocol.encode_commands(life.outgoing)
                life.outgoing.clear()
                await life.actor.tell.remote(frame)
        except Exception as error:  # noqa: BLE001 - whatever Ray raises, the node can't be reached
            self._drop(life.id, _why(error))
        finally:
            life.delivering = False

    def _drop(self, node: str, why: str) -> None:
        life = self._lives.pop(node, None)
        if life is None:
            return
        self._settle(node)
        self._rests[life.ray_id] = self._rest(life, why)
        life.task.cancel()
        self._go(asyncio.to_thread(_kill, life.actor))
        self._target.tell(NodeLeft(node, why))

    def _rest(self, life: "_Life", why: str) -> "_Rest":
        """How long its machine is left alone; the log has each reason once."""
        now, before = self._loop.time(), self._rests.get(life.ray_id)
        if life.joined:
            return _Rest(now + _AGAIN_S, _AGAIN_S)
        if before is None or before.why != why:
            _log.error("the node %s can't be used: %s", life.name, why)
        wait_s = min(2 * before.wait_s, _AGAIN_MOST_S) if before else _AGAIN_S
        return _Rest(now + wait_s, wait_s, why)

    async def _watch(self) -> None:
        while True:
            blind = ""
            try:
                self._compare(await asyncio.to_thread(ray.nodes))
            except Exception as error:  # noqa: BLE001 - Ray's own head is away; what runs goes on
                blind = _why(error)
                if blind != self._blind:
                    _log.warning("Ray does not say which nodes there are, what runs goes on: %s", blind)
            self._blind = blind
            await asyncio.sleep(_WATCH_S)

    def _compare(self, found: list[dict[str, Any]]) -> None:
        alive = {one["NodeID"]: one for one in found if one["Alive"]}
        for life in list(self._lives.values()):
            if life.ray_id not in alive:
                self._drop(life.id, "Ray has lost its machine")
        self._rests = {ray_id: rest for ray_id, rest in self._rests.items() if ray_id in alive}
        taken = {life.ray_id for life in self._lives.values()}
        taken |= {ray_id for ray_id, rest in self._rests.items() if rest.until > self._loop.time()}
        for ray_id, one in alive.items():
            mib = one["Resources"].get(RESOURCE, 0.0)
            if mib and ray_id not in taken:
                self._begin(ray_id, one["NodeName"], mib)
        if self._unheard is None:
            self._unheard = set(self._lives)
        self._settle("")

    def _settle(self, node: str) -> None:
        if self._unheard is not None:
            self._unheard.discard(node)
            if not self._unheard:
                self.settled.set()

    def _begin(self, ray_id: str, name: str, mib: float) -> None:
        life = _Life(f"{ray_id[:12]}.{next(self._numbers)}", ray_id, name)
        # All of the resource: `ray status` shows it as taken, and a second server can't count the same memory again.
        life.actor = _remote_class().options(
            num_cpus=0,
            resources={RESOURCE: mib},
            scheduling_strategy=NodeAffinitySchedulingStrategy(ray_id, soft=False),
            max_concurrency=1000,
            max_restarts=0,
        ).remote()  # fmt: skip
        self._lives[life.id] = life
        life.task = self._go(self._live(life, int(mib * MIB)))

    async def _live(self, life: "_Life", limit_bytes: int) -> None:
        try:
            if problem := await self._start(life, limit_bytes):
                self._drop(life.id, problem)
                return
            if warning := await asyncio.wait_for(_result(life.actor.warning.remote()), _SILENT_S):
                _log.warning("the node %s: %s", life.name, warning)
            if any(other.joined and other.name == life.name for other in self._lives.values()):
                life.name = f"{life.name}-{life.ray_id[:4]}"
            life.joined = True
            self._rests.pop(life.ray_id, None)
            self._target.tell(NodeJoined(life.id, life.name))
            while True:
                frame = await asyncio.wait_for(_result(life.actor.poll.remote()), _SILENT_S)
                if items := node_protocol.decode_items(frame):
                    self._target.tell(FromNode(life.id, items))
                    self._settle(life.id)
        except TimeoutError:
            self._drop(life.id, f"it has said nothing for {_SILENT_S:.0f} s")
        except Exception as error:  # noqa: BLE001 - whatever Ray raises, the node can't be reached
            hint = "" if life.joined else f"; Plimsoll {__version__} has to be in the Python that Ray has there"
            self._drop(life.id, _why(error) + hint)

    async def _start(self, life: "_Life", limit_bytes: int) -> str:
        """Why it can't be used, or ""."""
        started = life.actor.start.remote(__version__, self._settings, limit_bytes)
        try:
            problem: str = await asyncio.wait_for(_result(started), _START_S)
        except TimeoutError:
            return (
                f"its process did not start within {_START_S:.0f} s; ray status says whether another server holds its"
                f" {RESOURCE}"
            )
        return problem


class _Rest(NamedTuple):
    """A machine is not started before ``until``, on the loop's clock; ``why`` is the logged reason."""

    until: float
    wait_s: float
    why: str = ""


class _Life:
    actor: Any
    task: "asyncio.Task[None]"

    def __init__(self, one: str, ray_id: str, name: str) -> None:
        self.id = one
        self.ray_id = ray_id
        self.name = name
        self.joined = False
        self.delivering = False
        self.outgoing: list[node_protocol.Command] = []


async def _result(ref: Any) -> Any:
    return await ref


def _remote_class() -> Any:
    return ray.remote(NodeServer)


def _kill(actor: Any) -> None:
    try:
        ray.kill(actor)
    except Exception as error:  # noqa: BLE001 - it is gone already, or Ray is
        _log.debug("a node's process could not be ended: %s", error)


def _why(error: Exception) -> str:
    """Ray's reason without its stack and its ids."""
    if isinstance(error, ray.exceptions.ActorDiedError):
        return "its process has ended"
    if isinstance(error, ray.exceptions.ActorUnavailableError):
        return "it can't be reached any more"
    cause = getattr(error, "cause", None) or error
    return " ".join(str(cause).split()) or type(error).__name__
