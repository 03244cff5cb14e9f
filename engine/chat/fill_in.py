"""Prompts for text in the middle: a beginning and an end, between a tokenizer's own marks for them."""

from typing import Any, NamedTuple

from plimsoll.errors import BadRequest


class _Marks(NamedTuple):
    """One family's marks, and whether the ``suffix`` stands before the prompt."""

    prefix: str
    suffix: str
    middle: str
    suffix_first: bool = False


_FAMILIES = (
    _Marks("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen coders, CodeGemma, Seed-Coder
    _Marks("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    _Marks("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    _Marks("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    _Marks("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM, CodeGeeX
    _Marks("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    _Marks("[PREFIX]", "[SUFFIX]", "", suffix_first=True),  # Codestral
)


def fill_in(tokenizer: Any, prompt: list[int], suffix: list[int]) -> list[int]:
    """The tokens that ask for what stands between ``prompt`` and ``suffix``, which are tokens without marks.

    Raises ``BadRequest`` for a tokenizer without marks.
    """
    vocabulary = tokenizer.get_vocab()
    for marks in _FAMILIES:
        names = (marks.prefix, marks.suffix, marks.middle)
        if all(not name or name in vocabulary for name in names):
            before, after, middle = ([vocabulary[name]] if name else [] for name in names)
            begin = prompt[:1] if prompt and prompt[0] == tokenizer.bos_token_id else []
            prompt = prompt[len(begin) :]
            parts = [after, suffix, before, prompt] if marks.suffix_first else [before, prompt, after, suffix]
            return [*begin, *(token for part in parts for token in part), *middle]
    raise BadRequest(
        "This model fills in no text: its tokenizer has no tokens for it. Leave suffix out, or ask a model that has "
        "them, such as a Qwen coder.",
        param="suffix",
    )
