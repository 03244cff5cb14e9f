"""Texts that are far too long for a model, found out without tokenising all of them.

A tokenizer takes 1 to 5 us and up to 190 bytes for each character of an unkind text: 16 MB were read for 72 s, and took
3 GB. What is read here grows with the model's context instead.
"""

from collections.abc import Callable

_SLICE = 16 * 1024
# A slice's tokens beyond those that its text would have had as a part of the whole: its ends cut words in two.
_CUT_TOKENS = 64


def beginning(count: Callable[[str], int], text: str, tokens: int) -> str:
    """The whole text, or as much of it as surely has more than ``tokens`` tokens; ``count`` counts those of a text."""
    if len(text) <= _SLICE + 4 * tokens:
        return text
    found = 0
    for end in range(_SLICE, len(text), _SLICE):
        found += count(text[end - _SLICE : end]) - _CUT_TOKENS
        if found > tokens:
            return text[:end]
    return text
