"""One load of a model, from weighing its files to the command for its worker."""

from collections.abc import Callable

import msgspec

from plimsoll.actors.messages import Message, Ref, tell
from plimsoll.actors.replies import Waiting
from plimsoll.actors.timers import Timer, Timers
from plimsoll.actors.worker_deaths import LOAD_COOL_DOWN_S
from plimsoll.actors.worker_life import OnWeighed
from plimsoll.catalog.source import ModelSource
from plimsoll.engine.protocol import EngineOptions, Fetched, FetchModel, LoadModel, LoadProgress
from plimsoll.errors import LoadFailed
from plimsoll.memory.ledger import Need

# A disk that spins up, or a network share whose server restarts, answers sooner.
WEIGH_S = 30.0


class Weighed(Message, frozen=True):
    """The files' headers were read: the ways to load the model, none while its files are not here.

    ``number`` counts the weighings of one actor. If the disk does not answer, a timer sends this with an ``error``.
    """

    number: int
    needs: tuple[Need, ...]
    error: str


class Loading:
    """One load of the model, up to the worker's command; owned by one ModelActor, whose mailbox gets ``Weighed``."""

    def __init__(
        self,
        source: ModelSource,
        options: EngineOptions,
        owner: Ref,
        weigh: Callable[[OnWeighed], object],
        timers: Timers,
    ) -> None:
        self._source = source
        self._options = options
        self._owner = owner
        self._weigh = weigh
        self._timers = timers
        self._number = 0
        self._limit: Timer | None = None
        self.progress = Waiting("queue")
        self.fetched = False

    def begin(self) -> None:
        """Start a load anew."""
        self.progress = Waiting("queue")
        self.fetched = False
        self.weigh()

    def weigh(self) -> None:
        """Have the files' headers read; ``Weighed`` comes within ``WEIGH_S``."""
        self._number += 1
        number, owner = self._number, self._owner
        late = f"its files have not answered for {WEIGH_S:.0f} s; look at the disk or the network share they are on"
        self._limit = self._timers.tell_later(WEIGH_S, owner, Weighed(number, (), late))
        self._weigh(lambda needs, error: tell(owner, Weighed(number, needs, error)))

    def is_awaited(self, message: Weighed) -> bool:
        """Whether this is the first answer to the latest weighing."""
        if message.number != self._number or self._limit is None:
            return False
        self._limit.cancel()
        self._limit = None
        return True

    def failure(self, message: Weighed) -> LoadFailed | None:
        """Why the model can't be loaded; None if a grant may be asked for."""
        name = self._source.name
        if message.error:
            return LoadFailed(f"{name} can't be loaded: {message.error}", retry_after_s=LOAD_COOL_DOWN_S)
        if self.fetched and not message.needs:
            return LoadFailed(f"the files of {name} were fetched but are not there")
        return None

    def command(self, need: Need) -> LoadModel | FetchModel:
        """The command for the worker once ``need`` is granted."""
        if not need.weights_bytes:
            return FetchModel(self._source, self._options)
        kv_bytes = need.kv_bytes // need.ranks
        options = msgspec.structs.replace(
            self._options,
            kv_bytes=kv_bytes,
            kv_lease=need.leased,
            kv_most_bytes=need.kv_most_bytes,
            dequantize=need.dequantize,
        )
        return LoadModel(self._source, options, need.total_bytes // need.ranks)

    def on_progress(self, event: LoadProgress) -> None:
        self.progress = Waiting(event.stage, event.done, event.total)

    def on_fetched(self, _: Fetched) -> None:
        self.fetched = True
