"""Where thoughts begin and end among an answer's tokens, and the grammar that follows them."""

import mlx.core as mx
import pytest
from llguidance import LLMatcher, LLTokenizer

from plimsoll.engine.chat.grammar_constraint import Constraint, Thinking, Thoughts

START, END = tuple(b"<t>"), tuple(b"</t>")


def thinking(*, opened=False):
    return Thinking(START, END, opened, "</t>", lambda tokens: bytes(tokens).decode())


def follow(text, constraint):
    """Feed the text's bytes as tokens, as the engine does; the first one that was not allowed."""
    for token in text.encode():
        allowed = constraint(mx.zeros((1,)), mx.zeros((256,)))
        if allowed[token].item() != 0:
            return chr(token)
        constraint.advance(token)
    return ""


def constraint(grammar, *, opened=False):
    matcher = LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_lark(grammar), log_level=0)
    return Constraint(matcher, frozenset([0]), thinking(opened=opened))


@pytest.mark.parametrize("text", ["<t>so</t>[1]", "[1]", "<t>a[</t></t>"])
def test_a_mark_of_several_tokens_opens_thoughts(text):
    made = constraint('start: "[1]"')
    assert follow(text, made) == ("<" if text.endswith("</t></t>") else "")
    assert not made.failure


def test_a_mark_that_begins_as_the_grammar_does_leaves_both_open():
    assert follow("<t>so</t><call>", constraint('start: "<call>"')) == ""
    assert follow("<call>", constraint('start: "<call>"')) == ""
    assert follow("<x", constraint('start: "<call>"')) == "x"
    assert follow("so</t><call>", constraint('start: "<call>"', opened=True)) == ""


def test_an_end_is_found_whatever_tokens_write_it():
    texts = {7: "so ", 8: "<", 9: "/t>\n"}
    thoughts = Thoughts(Thinking((1,), (2, 3), True, "</t>", lambda tokens: "".join(map(texts.__getitem__, tokens))))
    thoughts.add(7)
    thoughts.add(8)
    assert thoughts.inside
    thoughts.add(9)
    assert not thoughts.inside
