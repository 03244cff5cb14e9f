"""The prompts of agents' sessions on a lenient template and on a strict one."""

import json

import pytest
from agent_turns import SESSIONS
from template_tokenizer import Tokenizer

from plimsoll.engine.dialect.dialect import Dialect
from plimsoll.http.bodies import chat_request

LENIENT = (
    "{% for t in tools or [] %}<tool {{ t | tojson }}>{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "{% endfor %}<assistant>"
)
# One system message at the begin, roles in turn, ids of nine letters.
STRICT = (
    "{% for t in tools or [] %}<tool {{ t | tojson }}>{% endfor %}{% set ns = namespace(turn='user') %}"
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{% if not loop.first %}{{ raise_exception('system') }}{% endif %}"
    "{% elif m.role in ('user', 'assistant') and not m.tool_calls %}"
    "{% if m.role != ns.turn %}{{ raise_exception('turns') }}{% endif %}"
    "{% set ns.turn = 'assistant' if m.role == 'user' else 'user' %}"
    "{% elif m.role == 'tool' and m.tool_call_id | length != 9 %}{{ raise_exception('nine') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('nine') }}{% endif %}"
    "<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "{% endfor %}<assistant>"
)


@pytest.fixture(scope="module", params=[LENIENT, STRICT], ids=["lenient", "strict"])
def dialect(request):
    return Dialect(Tokenizer(request.param))


def prompt(dialect, api, body):
    """The text that a body becomes, without what asks for the answer."""
    return dialect.ask(chat_request(api, json.dumps({"model": "m"} | body).encode())).text.removesuffix("<assistant>")


def shared(one, other):
    """The beginning that two texts have in common."""
    return one[: next((index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))]


@pytest.mark.parametrize("client", SESSIONS)
def test_each_turn_of_an_agent_begins_with_the_prompt_of_the_turn_before(dialect, client):
    api, turns = SESSIONS[client]
    first, second, third = (prompt(dialect, api, body) for body in turns)
    for before, after in ((first, second), (second, third)):
        assert len(shared(before, after)) >= 0.99 * len(before), (before, after)
    assert "ship.py" in second
    assert third.endswith("and now?")


def test_a_new_session_of_claude_code_shares_all_but_its_own_words(dialect):
    api, (first, *_) = SESSIONS["Claude Code"]
    line = {"type": "text", "text": "x-anthropic-billing-header: cc_version=9.9.9.def;"}
    messages = [{"role": "user", "content": "something else"}, first["messages"][1]]
    other = first | {"system": [line, first["system"][1]], "messages": messages}
    one, two = prompt(dialect, api, first), prompt(dialect, api, other)
    assert "# Rules" in shared(one, two)
    assert "billing" not in one
