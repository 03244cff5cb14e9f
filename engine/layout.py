"""Where in an answer's text the reasoning, the answer proper and the tool calls stand."""

from dataclasses import dataclass
from typing import Literal

from mlx_lm.tokenizer_utils import TokenizerWrapper

from plimsoll.engine.tool_calls import CallFormat

State = Literal["normal", "reasoning", "tool"]
Edges = dict[str, tuple[tuple[str, str | None], ...]]


@dataclass(frozen=True, slots=True)
class Layout:
    """``edges`` lead from state to state by a mark in the text; states but reasoning and tool are the answer proper.

    ``calls`` is None where no tools were offered, ``parallel`` is whether there may be more than one call.
    """

    edges: Edges
    initial: str = "normal"
    calls: CallFormat | None = None
    parallel: bool = True


PLAIN = Layout({})
"""All text is the answer."""


def layout(tokenizer: TokenizerWrapper, calls: CallFormat | None, *, reasoning: bool, parallel: bool) -> Layout:
    """The marks of this model; ``reasoning`` is whether the prompt has opened its thinking already."""
    edges: dict[str, list[tuple[str, str | None]]] = {"normal": []}
    if tokenizer.has_thinking:
        edges["normal"].append((tokenizer.think_start, "reasoning"))
        edges["reasoning"] = [(tokenizer.think_end, "normal")]
    # Formats whose calls begin in the middle of another structure say so themselves.
    own = {target for targets in tokenizer.response_transitions.values() for _, target in targets}
    if calls is not None:
        if not (calls.native and "tool" in own):
            edges["normal"].append((calls.start, "tool"))
        if "reasoning" in edges:
            edges["reasoning"].append((calls.start, "tool"))
        edges["tool"] = [(calls.end, "normal")] if calls.end else []
    edges["normal"] += [(mark, "normal") for mark in tokenizer.structural_markers]
    for state, transitions in tokenizer.response_transitions.items():
        kept = [(mark, target) for mark, target in transitions if target != "tool" or calls is not None]
        edges.setdefault(state, []).extend(kept)
    initial = "reasoning" if reasoning else tokenizer.response_initial_state or "normal"
    return Layout({state: tuple(marks) for state, marks in edges.items()}, initial, calls, parallel)
