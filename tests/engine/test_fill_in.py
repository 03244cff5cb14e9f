"""Prompts for text in the middle, by the tokenizer's own marks."""

import pytest

from plimsoll.engine.chat.fill_in import fill_in
from plimsoll.errors import BadRequest


class Tokenizer:
    """One that knows some marks; their ids are 100 and more."""

    bos_token_id = 1

    def __init__(self, *marks):
        self._vocabulary = {mark: 100 + index for index, mark in enumerate(marks)}

    def get_vocab(self):
        return self._vocabulary


@pytest.mark.parametrize(
    ("marks", "tokens"),
    [
        (("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"), [1, 100, 5, 6, 101, 7, 102]),
        (("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"), [1, 100, 5, 6, 101, 7, 102]),
        (("[PREFIX]", "[SUFFIX]"), [1, 101, 7, 100, 5, 6]),
    ],
)
def test_each_familys_marks_stand_where_it_wants_them(marks, tokens):
    assert fill_in(Tokenizer(*marks), [1, 5, 6], [7]) == tokens


def test_a_tokenizer_without_marks_is_told():
    with pytest.raises(BadRequest, match="fills in no text") as caught:
        fill_in(Tokenizer("<|im_start|>"), [5], [7])
    assert caught.value.param == "suffix"
