"""The marks that families put around what a model thinks before it answers."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Thoughts:
    """``start`` and ``end`` of thoughts; ``plain`` is whether an answer may well name such a mark as a word.

    ``spoken`` is whether the start belongs to the thoughts: history has it among them.
    ``noise`` are marks around what follows the thoughts, which are shown to nobody.
    """

    start: str
    end: str
    plain: bool = False
    noise: tuple[str, ...] = ()
    spoken: bool = False


KNOWN = (
    Thoughts("<think>", "</think>", plain=True, noise=("<response>", "</response>")),
    Thoughts("[THINK]", "[/THINK]"),
    Thoughts("<seed:think>", "</seed:think>"),
    Thoughts("<mm:think>", "</mm:think>"),
    Thoughts("<longcat_think>", "</longcat_think>"),
    Thoughts("<|channel>thought", "<channel|>"),
    Thoughts("<|START_THINKING|>", "<|END_THINKING|>", noise=("<|START_RESPONSE|>", "<|END_RESPONSE|>")),
    Thoughts("<|think:start|>", "<|think:end|>"),
    Thoughts("<|inner_prefix|>", "<|inner_suffix|>"),
    Thoughts("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    Thoughts("<thinking>", "</thinking>", plain=True),
    Thoughts("<thought>", "</thought>", plain=True),
    Thoughts("<reasoning>", "</reasoning>", plain=True),
    Thoughts("<|begin_of_thought|>", "<|end_of_thought|>", noise=("<|begin_of_solution|>", "<|end_of_solution|>")),
    Thoughts("◁think▷", "◁/think▷"),
    Thoughts(
        "Here are my reasoning steps:",
        "[BEGIN FINAL RESPONSE]",
        noise=("[END FINAL RESPONSE]",),
        spoken=True,
    ),
    Thoughts("Here is my thought process:", "Here is my response:", plain=True),
)
"""In the order in which they are looked for."""


def find_thoughts(template: str, vocabulary: dict[str, int]) -> Thoughts | None:
    """The marks of a model: those that its template names, else those that are tokens of its vocabulary."""
    for known in KNOWN:
        if known.end in template and (known.start in template or known.start in vocabulary):
            return _with_noise(known, template)
    for known in KNOWN:
        if known.end in vocabulary and (known.start in vocabulary or known.start.removesuffix("thought") in vocabulary):
            return _with_noise(known, template)
    return None


def _with_noise(known: Thoughts, template: str) -> Thoughts:
    """Granite alone has marks around the answer that others may write as words."""
    kept = tuple(mark for mark in known.noise if not known.plain or mark in template)
    return replace(known, noise=kept)
