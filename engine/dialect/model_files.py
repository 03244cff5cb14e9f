"""A tokenizer as a dialect needs it: with the template that its folder has, and all tokens that end an answer."""

import logging
from pathlib import Path
from typing import Any

from plimsoll.catalog.model_card import chat_template, end_ids
from plimsoll.engine.dialect.template import Template, TemplateRefuses
from plimsoll.engine.mlx_lm_internals import bare_tokenizer, set_template
from plimsoll.engine.prompt_bounds import TookTooLong, time_limit
from plimsoll.errors import LoadFailed

_TEMPLATE_S = 5.0
_log = logging.getLogger(__name__)
_SAID = "QZSAID"
_TURNS = (
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": _SAID},
    {"role": "user", "content": "hello"},
)
# gpt-oss and Muse end each of an answer's messages with a mark of its own; these end the answer.
_CHANNELS_END = ("<|return|>", "<|call|>", "<|eot|>")
# What Llama and GLM write behind a call, for its result.
_CALLS_END = ("<|eom_id|>", "<|eom|>", "<|observation|>")


def complete(tokenizer: Any, folder: Path) -> None:
    """Give ``tokenizer``, which is mlx-lm's, the template and the end tokens that it has not found itself."""
    if not tokenizer.has_chat_template and (found := chat_template(folder)):
        bare_tokenizer(tokenizer).chat_template = found
        tokenizer.has_chat_template = True
    if not tokenizer.has_chat_template:
        _log.warning(
            "%s has no chat template: it is a base model, which goes on with a text and answers nobody", folder
        )
    known = len(tokenizer)
    ends = set(tokenizer.eos_token_ids) | {one for one in end_ids(folder) if one < known}
    tokenizer.eos_token_ids = ends | _ends_of_turn(tokenizer)


def use_template(tokenizer: Any, file: Path) -> None:
    """Put the template in ``file``, the user's own, in the place of the model's. Raises ``LoadFailed``."""
    try:
        source = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise LoadFailed(f"The entry's chat_template {file} can't be read: {error}.") from None
    set_template(tokenizer, source)
    Template(tokenizer).took_too_long = False
    tokenizer.eos_token_ids = set(tokenizer.eos_token_ids) | _ends_of_turn(tokenizer)


def _ends_of_turn(tokenizer: Any) -> set[int]:
    """The special token that the template puts right behind what the assistant said."""
    template = Template(tokenizer)
    vocabulary = tokenizer.get_vocab()
    if "<|message|>" in template.source and "<|start|>" in template.source:
        return {vocabulary[mark] for mark in _CHANNELS_END if mark in vocabulary and mark in template.source}
    if not template.exists:
        return set()
    try:
        with time_limit(_TEMPLATE_S):
            told = template.render([dict(one) for one in _TURNS])
    except TemplateRefuses:
        return set()  # it is said to the request that it is rendered for
    except TookTooLong:
        template.took_too_long = True
        return set()
    behind = told.partition(_SAID)[2].lstrip()
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    special = [token for token in added.values() if token.special and behind.startswith(token.content)]
    longest = max(special, key=lambda token: len(token.content), default=None)
    found = {vocabulary[mark] for mark in _CALLS_END if mark in vocabulary and mark in template.source}
    return found | ({vocabulary[longest.content]} if longest is not None and longest.content in vocabulary else set())
