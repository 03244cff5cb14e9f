"""What an entry or one of its profiles sets for requests that say nothing of it."""

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from plimsoll.config import RequestDefaults


class Defaults(msgspec.Struct, frozen=True):
    """None, empty or absent: the request's own value holds, or what the model's files say.

    ``sampling`` has names of ``Sampling`` with values. ``system_prefix`` stands before the system message of every
    conversation.
    """

    sampling: tuple[tuple[str, float], ...] = ()
    max_tokens: int | None = None
    thinking: bool | None = None
    thinking_budget: int | None = None
    system_prefix: str = ""

    def over(self, base: "Defaults") -> "Defaults":
        """These, and those of ``base`` where these say nothing."""
        return Defaults(
            sampling=tuple((dict(base.sampling) | dict(self.sampling)).items()),
            max_tokens=base.max_tokens if self.max_tokens is None else self.max_tokens,
            thinking=base.thinking if self.thinking is None else self.thinking,
            thinking_budget=base.thinking_budget if self.thinking_budget is None else self.thinking_budget,
            system_prefix=self.system_prefix or base.system_prefix,
        )


def defaults_of(entry: "RequestDefaults") -> Defaults:
    """The defaults that an entry, or one of its profiles, sets."""
    given = msgspec.structs.asdict(entry.sampling)
    return Defaults(
        sampling=tuple((key, value) for key, value in given.items() if value is not None),
        max_tokens=entry.max_tokens,
        thinking=entry.thinking,
        thinking_budget=entry.reasoning_budget,
        system_prefix=entry.system_prefix or "",
    )
