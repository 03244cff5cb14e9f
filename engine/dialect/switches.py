"""Whether and how much a model shall think, in the words that its template reads."""

import contextlib
import re
from collections.abc import Callable
from typing import Any

from plimsoll.engine.dialect.template import Template, TemplateRefuses

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_TRAINED = ("low", "medium", "high")  # where a template takes any word: those of the models that began with it
_TRUTHS = ("enable_thinking", "thinking", "enable_reasoning")
_USER = [{"role": "user", "content": "hello"}]


class Switches:
    """The switches of one template, found once."""

    def __init__(self, template: Template, render: Callable[..., str]) -> None:
        self._template = template
        self.names = tuple(
            name for name in (*_TRUTHS, "thinking_mode", "thinking_budget") if name in template.variables
        )
        self.efforts = self._taken(render) if template.reads("reasoning_effort") else ()

    def kwargs(self, thinking: bool | None, given: dict[str, Any], changes: list[str]) -> dict[str, Any]:
        """The template's arguments for a request; ``given`` are the client's own."""
        wanted: dict[str, Any] = {}
        if thinking is not None:
            named = [name for name in _TRUTHS if self._template.reads(name)]
            wanted = dict.fromkeys(named or _TRUTHS[:1], thinking)
            if self._template.reads("thinking_mode"):
                wanted["thinking_mode"] = "enabled" if thinking else "disabled"
            if self._template.reads("thinking_budget") and not thinking:
                wanted["thinking_budget"] = 0
        merged = {**given, **wanted}
        effort = merged.get("reasoning_effort")
        if isinstance(effort, str) and self.efforts and effort not in self.efforts and effort in EFFORTS:
            nearest = min(self.efforts, key=lambda one: abs(EFFORTS.index(one) - EFFORTS.index(effort)))
            changes.append(f"reasoning_effort {effort} became {nearest}, the nearest that the template takes")
            merged["reasoning_effort"] = nearest
        return merged

    def _taken(self, render: Callable[..., str]) -> tuple[str, ...]:
        """The efforts that the template takes: not refused, and known to it where it knows any."""
        shown = {}
        for effort in (*EFFORTS, "qzword"):
            with contextlib.suppress(TemplateRefuses):
                shown[effort] = render(_USER, reasoning_effort=effort)
        other = shown.pop("qzword", None)
        named = {text for name, texts in self._template.constants.items() if "effort" in name for text in texts}
        if known := [one for one in shown if one in named or (named and shown[one] == other and _says(other, one))]:
            return tuple(known)
        return tuple(one for one in shown if one in _TRAINED) or tuple(shown)


def _says(text: str, word: str) -> bool:
    return re.search(rf"\b{word}\b", text, re.IGNORECASE) is not None
