"""The way of one model to its worker: weighed, granted, fetched where its files are not here, weighed again, loaded."""

from collections.abc import Callable

import msgspec

from plimsoll.actors.exits import LOAD_COOL_DOWN_S
from plimsoll.actors.messages import Message, Ref, Waiting, tell
from plimsoll.actors.worker_life import OnWeighed
from plimsoll.engine.protocol import EngineOptions, Fetched, FetchModel, LoadModel, LoadProgress, ModelSource
from plimsoll.errors import LoadFailed
from plimsoll.memory.plan import Need


class Weighed(Message, frozen=True):
    """The files' headers were read: the ways to load the model, none while its files are not here."""

    needs: tuple[Need, ...]
    error: str


class Loading:
    """Owned by one ModelActor, whose mailbox gets ``Weighed``. ``progress`` is how far it is."""

    def __init__(
        self, source: ModelSource, options: EngineOptions, owner: Ref, weigh: Callable[[OnWeighed], object]
    ) -> None:
        self._source = source
        self._options = options
        self._owner = owner
        self._weigh = weigh
        self.progress = Waiting("queue")
        self.fetched = False

    def begin(self) -> None:
        """From the beginning."""
        self.progress = Waiting("queue")
        self.fetched = False
        self.weigh()

    def weigh(self) -> None:
        """Have the files weighed; this comes back as ``Weighed``."""
        owner = self._owner
        self._weigh(lambda needs, error: tell(owner, Weighed(needs, error)))

    def failure(self, message: Weighed) -> LoadFailed | None:
        """Why what was weighed can't be loaded; None where it may be asked for."""
        name = self._source.name
        if message.error:
            return LoadFailed(f"{name} can't be loaded: {message.error}", retry_after_s=LOAD_COOL_DOWN_S)
        if self.fetched and not message.needs:
            return LoadFailed(f"the files of {name} were fetched but are not there")
        return None

    def command(self, need: Need) -> LoadModel | FetchModel:
        """What the worker is told once ``need`` is granted."""
        if not need.weights_bytes:
            return FetchModel(self._source, self._options)
        kv_bytes = need.kv_bytes // need.ranks
        options = msgspec.structs.replace(self._options, kv_bytes=kv_bytes, dequantize=need.dequantize)
        return LoadModel(self._source, options, need.total_bytes // need.ranks)

    def on_progress(self, event: LoadProgress) -> None:
        self.progress = Waiting(event.stage, event.done, event.total)

    def on_fetched(self, _: Fetched) -> None:
        self.fetched = True
