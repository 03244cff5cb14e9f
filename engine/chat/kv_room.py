"""The room for one worker's KV caches: which requests may join and grow, and which has to pause.

The room is a lease. More is asked of the front before it is needed, and what is not used any more is handed back.
"""

import math
from collections.abc import Callable, Iterable, Mapping

from plimsoll.engine.chat.kv_budget import STEP_TOKENS, KvBudget, Wish
from plimsoll.engine.chat.prefix_store.prefix_store import PrefixStore
from plimsoll.engine.chat.running import Answer, Running
from plimsoll.engine.load.device_memory import WiredMemory
from plimsoll.engine.load.weights import give_back
from plimsoll.engine.protocol import EngineOptions, Event, Held, Lease, LeaseWanted

# Room is asked for so many bytes, or an eighth, before it is needed.
_AHEAD_BYTES = 64 << 20
_AHEAD_SHARE = 8
# After a denial it is asked again no sooner.
_AGAIN_S = 0.25
# While a request waits for memory the allocators' pools are emptied so often: it takes tens of milliseconds.
_GIVE_BACK_S = 1.0
# How often clients are told that their request waits for memory.
_HELD_S = 1.0
# A paused answer goes on with room for so many tokens, or it would soon pause again; alone one step is enough.
_RESUMED_TOKENS = 4 * STEP_TOKENS
# What is kept for later prompts where nothing bounds the KV caches.
_KEPT_WITHOUT_BOUND_BYTES = 512 << 20


class KvRoom:
    """Claims of running requests come first, and the prefix store has what they leave.

    Without ``EngineOptions.kv_lease`` the room stays as it is.
    """

    def __init__(
        self,
        options: EngineOptions,
        budget: KvBudget,
        store: PrefixStore,
        clock: Callable[[], float],
        wired: WiredMemory,
    ) -> None:
        self.budget = budget
        self.parking: set[int] = set()
        """Rows that have to pause when this step is done."""
        self.needed_bytes = 0
        """The room that a waiting or paused request needs in all; 0 where none waits for memory."""
        self._options = options
        self._store = store
        self._wired = wired
        self._clock = clock
        self._asked = False
        self._again_at = self._held_at = self._gave_back_at = -math.inf
        self._hopeless = False
        self._fit_store()

    # ---- the claims of requests

    def wish(self, answer: Answer, *, alone: bool) -> Wish:
        """What the answer needs to join; one that goes on beside others needs more, or it would soon pause again."""
        tokens, left = len(answer.tokens), answer.prompt.max_tokens - answer.said_before
        first = STEP_TOKENS if alone or not answer.begun else _RESUMED_TOKENS
        return Wish(tokens, left, first, scored=answer.scores is not None)

    def fits(self, wish: Wish) -> bool:
        """Whether the wish may join now; else it is noted that somebody waits for so much room."""
        if self.budget.fits(wish):
            return True
        self.needed_bytes = self.budget.needed_bytes(wish)
        return False

    def join(self, uid: int, wish: Wish) -> int:
        """Claim what the wish begins with, which must fit; returns the tokens of answer granted."""
        granted = self.budget.join(uid, wish)
        self._fit_store()
        return granted

    def leave(self, uid: int) -> None:
        """Give the claim of a row back; stored prefixes may take what it took."""
        self.parking.discard(uid)
        self.budget.leave(uid)
        self._fit_store()

    def grow(self, uid: int, rows: Mapping[int, Running]) -> bool:
        """More room for the answer of a row, or a pause until there is; False if there will be none.

        It may be another one of ``rows`` that has to pause: the youngest.
        """
        if uid in self.parking:
            return True
        row = rows[uid]
        while True:
            row.granted = row.answer.said_before + self.budget.grow(uid)
            if row.generated < row.granted:
                self._fit_store()
                return True
            self.needed_bytes = max(self.needed_bytes, self.budget.growth_bytes(uid))
            running = rows.keys() - self.parking
            if len(running) == 1 and not self.may_grow:
                return False
            youngest = max(running, key=lambda one: rows[one].answer.arrived)
            self.parking.add(youngest)
            self.budget.leave(youngest)
            if youngest == uid:
                return True

    def held(self, waiting: Iterable[Answer]) -> list[Event]:
        """Tells the requests in line, once a second, what they wait for."""
        now = self._clock()
        if now - self._held_at < _HELD_S:
            return []
        self._held_at = now
        return [Held(one.id, self.budget.room_bytes, self.needed_bytes) for one in waiting]

    # ---- the lease

    @property
    def may_grow(self) -> bool:
        """Whether memory may come free for what is needed now."""
        return self._options.kv_lease and not self._hopeless

    def ask(self) -> list[Event]:
        """Asks for more room before it is needed, or hands back what is not."""
        if not self._options.kv_lease or self._asked:
            return []
        budget, first = self.budget, self._options.kv_bytes
        used = max(budget.claimed_bytes, self.needed_bytes)
        used += max(_AHEAD_BYTES, used // _AHEAD_SHARE)
        stored = min(self._store.nbytes, self._store_cap(self._store.nbytes))
        wanted = max(first, min(used + stored, budget.most_bytes))
        if wanted < budget.room_bytes // 2:
            return [self._hand_back(wanted)]
        if wanted <= budget.room_bytes or self._clock() < self._again_at:
            return []
        self._asked = True
        needed = min(self.needed_bytes, wanted) if self.needed_bytes > budget.room_bytes else 0
        if needed and self._clock() - self._gave_back_at > _GIVE_BACK_S:
            # What the allocators hold for later counts as taken when the front looks whether there is more.
            self._gave_back_at = self._clock()
            give_back()
        return [LeaseWanted(wanted, needed, budget.longest)]

    def leased(self, lease: Lease) -> None:
        """The front has answered: the room is what ``lease`` says."""
        grown = lease.kv_bytes > self.budget.room_bytes
        self._set_room(lease.kv_bytes, lease.most_bytes)
        self._asked = False
        self._hopeless = not lease.more
        self._again_at = self._clock() + (0.0 if grown else _AGAIN_S)

    def give_way(self) -> list[Event]:
        """Hands back what no request claims, if that is anything."""
        room = max(self._options.kv_bytes, self.budget.claimed_bytes)
        if not self._options.kv_lease or room >= self.budget.room_bytes:
            return []
        return [self._hand_back(room)]

    def _hand_back(self, room_bytes: int) -> LeaseWanted:
        self._set_room(room_bytes, self.budget.most_bytes)
        return LeaseWanted(room_bytes, longest=self.budget.longest)

    def _set_room(self, room_bytes: int, most_bytes: int) -> None:
        self.budget.lease(room_bytes, most_bytes)
        self._fit_store()
        self._wired.follow(room_bytes)

    # ---- what the prefix store may take

    def _store_cap(self, without_key: int) -> int:
        cap = self._options.prompt_cache_bytes
        return without_key if cap is None else cap

    def _fit_store(self) -> None:
        spare = self.budget.spare_bytes
        self._store.set_budget(
            min(spare, self._store_cap(spare if self._options.kv_bytes else _KEPT_WITHOUT_BOUND_BYTES))
        )
