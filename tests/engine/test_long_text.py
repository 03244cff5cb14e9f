"""Texts that are far too long are found out without reading all of them."""

import pytest

from plimsoll.engine.prompt_bounds import beginning


class Counter:
    """A tokenizer of words that knows how much it was given."""

    def __init__(self):
        self.read = 0

    def __call__(self, text):
        self.read += len(text)
        return len(text.split())


@pytest.mark.parametrize("text", ["", "a ship", "word " * 3000])
def test_a_text_that_may_fit_is_left_whole_and_not_read(text):
    count = Counter()
    assert beginning(count, text, 2048) == text
    assert count.read == 0


def test_a_long_text_of_few_tokens_is_left_whole():
    text = "x" * 1_000_000
    assert beginning(Counter(), text, 2048) == text


def test_of_a_text_that_is_far_too_long_only_so_much_is_read_as_shows_it():
    count, text = Counter(), "word " * 1_000_000
    part = beginning(count, text, 2048)
    assert text.startswith(part)
    assert len(part.split()) > 2048
    assert count.read == len(part) < 50_000


def test_the_cuts_between_the_slices_are_not_held_against_a_text():
    """Exactly as many tokens as are allowed, though every slice has one more for the word that was cut in two."""
    words = 40_000
    text = " ".join(["shipshape"] * words)
    assert beginning(Counter(), text, words) == text
