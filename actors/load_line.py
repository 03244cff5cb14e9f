"""The loads that wait, in their order, and the models that make way for them."""

from collections.abc import Callable, Iterable, Sequence

from plimsoll.actors.leases import GIVE_WAY_S
from plimsoll.actors.messages import MakeWay, Message
from plimsoll.memory.ledger import Need, Seat

# After this time in line the models in the way begin no more requests, so that requests for several models in turn
# cause few loads, and no model is kept out by another one's steady stream.
TURN_S = 10.0


class LoadRequest:
    """One load that waits for its decision, and which clean-ups were made for it.

    ``waits``: what it waits for may take long. ``keeps_room``: it waits for memory that comes free by itself, which
    later loads may not take. ``told`` is what its model was told about why it waits. ``gave_way``: other workers were
    asked to hand back room that they do not use; nothing is decided before ``not_before``. At ``pressed_at`` a busy
    model was paused for it, or it was asked for.
    """

    def __init__(self, model: str, needs: tuple[Need, ...], now: float) -> None:
        self.model = model
        self.asked_at = self.pressed_at = now
        self.needs = needs
        self.cleaned = self.cleaned_hard = False
        self.waits = self.keeps_room = False
        self.told = ""
        self.gave_way = False
        self.not_before = now

    def asks_others(self, give_way: Callable[[str], bool], now: float) -> bool:
        """Before it is refused, other workers hand back what they do not use, busy ones too; False if none can.

        ``give_way`` asks all of them to.
        """
        if self.gave_way or not give_way(self.model):
            return False
        self.gave_way = True
        self.not_before = now + GIVE_WAY_S
        return True


def in_order(loads: Iterable[LoadRequest], seats: Sequence[Seat]) -> list[LoadRequest]:
    """Pinned models with requests that have lost their worker first; then by how long their requests have waited."""
    named = {seat.name: seat for seat in seats}

    def place(load: LoadRequest) -> tuple[bool, float]:
        seat = named.get(load.model)
        if seat is None or seat.paused_until == 0:
            return True, load.asked_at
        return not seat.pinned, min(load.asked_at, seat.paused_since)

    return sorted(loads, key=place)


def in_the_way(seats: Iterable[Seat]) -> list[Seat]:
    """Loaded models that can be evicted once they have answered, least recently used first."""
    return sorted((seat for seat in seats if seat.comes_free and seat.loaded), key=lambda seat: seat.last_used)


class Ways:
    """Which models make way: they begin no more requests, because others have waited long for their memory."""

    def __init__(self, tell: Callable[[str, Message], None]) -> None:
        self._tell = tell
        self._names: set[str] = set()

    def keep(self, names: set[str]) -> None:
        """Just these models make way from now on."""
        for name in sorted(self._names ^ names):
            self._tell(name, MakeWay(name in names))
        self._names = names

    def gone(self, name: str) -> None:
        """The model's life is over; the next one begins its requests."""
        self._names.discard(name)
