"""Which models have to unload now: a pure function of the newest samples and the running models, for each sample.

It knows no hysteresis and keeps no state. So a second emergency within the level of the first is handled like the
first, a worker that started between the two is found too, and a falling level starts nothing.
"""

from collections.abc import Sequence

import msgspec

from plimsoll.memory.ledger import Seat, clean_up_order
from plimsoll.memory.sample import Level


class Moves(msgspec.Struct, frozen=True):
    """The moves for one sample.

    ``leave`` are the models that run though memory is critically full, least recently used first; the workers among
    them that an emergency ends at once are told by the Watchdog itself. ``go_on`` are those that leave for a critical
    memory that is over. ``clean_up``: memory is at warning, and idle models could go.
    """

    leave: tuple[str, ...] = ()
    go_on: tuple[str, ...] = ()
    clean_up: bool = False


def moves(newest: Level, confirmed: Level, seats: Sequence[Seat]) -> Moves:
    """``newest`` is the level of the newest sample alone; ``confirmed`` that of the last ones, without hysteresis.

    Stopping needs a confirmed level; going on needs one healthy sample. A model that is stopped without need costs more
    than a model that goes on for another 0.1 s.
    """
    is_critical = confirmed >= Level.CRITICAL
    return Moves(
        leave=tuple(seat.name for seat in clean_up_order(seats, aggressive=True)) if is_critical else (),
        go_on=tuple(seat.name for seat in seats if seat.until_eased) if newest < Level.CRITICAL else (),
        clean_up=confirmed == Level.WARNING and bool(clean_up_order(seats, aggressive=False)),
    )
