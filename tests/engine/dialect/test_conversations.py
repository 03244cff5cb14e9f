"""What a template needs is found out, and a conversation is changed that far and no further."""

import json

import pytest
from template_tokenizer import Tokenizer

from plimsoll.engine.dialect.described import plain_tools
from plimsoll.engine.dialect.dialect import Dialect
from plimsoll.engine.dialect.needs import Needs
from plimsoll.engine.protocol import ChatRequest, Tool
from plimsoll.errors import BadRequest
from plimsoll.http.bodies import chat_request

EVERYTHING = (
    "{% for t in tools or [] %}<tool {{ t | tojson }}>{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "{% endfor %}<assistant>"
)
SYSTEM_FIRST = (
    "{% for m in messages %}"
    "{% if m.role == 'system' and not loop.first %}{{ raise_exception('at the begin') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('take turns') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
)
DROPS_LATER_SYSTEM = (
    "{% if messages[0].role == 'system' %}<system>{{ messages[0].content }}{% endif %}"
    "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
)
PICKY = EVERYTHING.replace(
    "{% for c in m.tool_calls or [] %}",
    "{% if m.tool_calls and m.tool_calls | length > 1 %}{{ raise_exception('one') }}{% endif %}"
    "{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('nine') }}{% endif %}{{ c.id }}",
)
NAMELESS = EVERYTHING.replace("{{ c.function | tojson }}", "{{ c.id }}{{ c.function.arguments | tojson }}")
DROPS_TEXT = EVERYTHING.replace("{{ m.content }}", "{% if not m.tool_calls %}{{ m.content }}{% endif %}")
OTHER_NAME = EVERYTHING.replace("tools or []", "xml_tools or []")
UNDEFINED_MACRO = "{% if tools %}{{ told(tools) }}{% endif %}" + EVERYTHING
EFFORTS = (
    "{% if reasoning_effort is defined and reasoning_effort not in ('low', 'xhigh') %}"
    "{{ raise_exception('no') }}{% endif %}"
    "{{ reasoning_effort }}{{ thinking }}" + EVERYTHING
)  # fmt: skip
LOOK = Tool("look", "LOOKS", {"type": "object", "properties": {"at": {"type": ["string", "null"]}}})
CALL = {"id": "call_0123456789", "type": "function", "function": {"name": "look", "arguments": '{"at": "HERE"}'}}


def ask(template, messages, *, tools=(), **rest):
    return Dialect(Tokenizer(template)).ask(ChatRequest(messages, tools=tools, **rest))


def message(role, content, **rest):
    return {"role": role, "content": content, **rest}


USER = message("user", "hello")
LOOKED = [message("assistant", "I look.", tool_calls=[CALL]), message("tool", "SEEN", tool_call_id=CALL["id"])]


def test_a_template_that_takes_everything_gets_everything_as_it_is():
    assert Dialect(Tokenizer(EVERYTHING)).needs == Needs(thoughts="reasoning_content")
    messages = [message("system", "S"), message("system", "T"), USER, *LOOKED, message("system", "U"), USER]
    asked = ask(EVERYTHING, messages, tools=(LOOK,))
    assert asked.changes == []
    call = '<tool_call>{"name": "look", "arguments": {"at": "HERE"}}</tool_call>'
    told = f"<system>S<system>T<user>hello<assistant>I look.{call}<tool>SEEN<system>U<user>hello<assistant>"
    assert asked.text.endswith(told)


@pytest.mark.parametrize("template", [SYSTEM_FIRST, DROPS_LATER_SYSTEM])
def test_system_messages_become_one_and_later_ones_a_marked_users(template):
    messages = [message("system", "S"), message("system", "T"), USER, message("assistant", "A"), message("system", "U")]
    asked = ask(template, messages)
    assert asked.text == "<system>S\n\nT<user>hello<assistant>A<user><system>\nU\n</system><assistant>"
    assert len(asked.changes) == 2


def test_what_was_computed_of_a_conversation_serves_its_next_turn():
    """A later system message that moved to the begin made every prompt new."""
    first = [message("system", "S"), USER, message("assistant", "A"), USER]
    later = [*first, message("assistant", "B"), message("system", "U"), USER]
    for template in (SYSTEM_FIRST, DROPS_LATER_SYSTEM, NO_SYSTEM):
        before = ask(template, first).text.removesuffix("<assistant>")
        assert ask(template, later).text.startswith(before)


def test_where_no_system_message_is_taken_it_stands_in_the_first_users_and_roles_take_turns():
    asked = ask(NO_SYSTEM, [message("system", "S"), USER, message("user", "more"), message("system", "T")])
    assert asked.text == "<user>S\n\nhello\n\nmore\n\n<system>\nT\n</system><assistant>"
    begun = ask(NO_SYSTEM, [message("assistant", "A"), USER]).text
    assert begun == "<user>(The assistant begins.)<assistant>A<user>hello<assistant>"


def test_a_reference_is_followed_whatever_the_name_of_the_definition():
    definitions = {"a/b": {"type": "integer"}}
    parameters = {"type": "object", "properties": {"n": {"$ref": "#/$defs/a~1b"}}, "$defs": definitions}
    (told,) = plain_tools((Tool("look", "", parameters),))
    assert told["function"]["parameters"]["properties"]["n"]["type"] == "integer"


def test_tools_are_described_where_the_template_tells_of_none():
    asked = ask(NO_SYSTEM, [message("system", "S"), USER, *LOOKED, message("user", "and?")], tools=(LOOK,))
    assert asked.text.startswith("<user>S\n\nYou may call one or more functions")
    assert '"description": "LOOKS"' in asked.text
    assert '<assistant>I look.\n<tool_call>\n{"name": "look", "arguments": {"at": "HERE"}}\n</tool_call>' in asked.text
    assert asked.text.endswith("<user><tool_response>\nSEEN\n</tool_response>\n\nand?<assistant>")


@pytest.mark.parametrize("template", [OTHER_NAME, UNDEFINED_MACRO])
def test_tools_reach_a_template_that_reads_them_elsewhere_or_fails_with_them(template):
    asked = ask(template, [USER, *LOOKED], tools=(LOOK,))
    assert asked.text.count("LOOKS") == 1
    assert "HERE" in asked.text
    assert "SEEN" in asked.text


def test_calls_stand_alone_and_ids_have_nine_letters_where_the_template_wants_it():
    calls = [{**CALL, "id": f"call_{number}"} for number in range(2)]
    results = [message("tool", f"SEEN{number}", tool_call_id=f"call_{number}") for number in (1, 0)]
    text = ask(PICKY, [USER, message("assistant", "", tool_calls=calls), *results], tools=(LOOK,)).text
    assert text.index("SEEN0") < text.rindex("<tool_call>") < text.index("SEEN1")
    assert text.count("<assistant>") == 3


def test_ids_that_stand_for_names_hold_them():
    assert "functions.look:0" in ask(NAMELESS, [USER, *LOOKED], tools=(LOOK,)).text


def test_an_id_that_names_another_tool_does_not_stand_for_the_name():
    """Where a template shows ids for names a client's own id of that form told of a call that was never made."""
    call = {**CALL, "id": "functions.other:7"}
    told = ask(NAMELESS, [USER, message("assistant", "", tool_calls=[call])], tools=(LOOK,)).text
    assert "functions.look:0" in told
    assert "functions.other" not in told


def test_text_beside_calls_is_a_message_of_its_own_where_it_would_be_dropped():
    text = ask(DROPS_TEXT, [USER, *LOOKED], tools=(LOOK,)).text
    assert "<user>hello<assistant>I look.<assistant><tool_call>" in text


def test_a_result_whose_id_no_call_has_is_kept():
    messages = [USER, LOOKED[0], {**LOOKED[1], "tool_call_id": "other"}]
    for template in (EVERYTHING, PICKY, NO_SYSTEM):
        assert "SEEN" in ask(template, messages, tools=(LOOK,)).text


def test_what_even_words_do_not_bring_into_the_prompt_is_said(caplog):
    asked = ask("{{ messages[0].content }}<assistant>", [USER, message("assistant", "A"), message("user", "LOST")])
    assert "the template leaves out messages[2]" in asked.changes
    assert "leaves out messages[2]" in caplog.text


def test_a_template_that_takes_nothing_is_refused_with_its_reason():
    with pytest.raises(BadRequest, match="refuses these messages: never"):
        ask("{{ raise_exception('never') }}", [USER])


def test_efforts_become_the_nearest_that_the_template_takes():
    for effort, taken in (("low", "low"), ("minimal", "low"), ("max", "xhigh")):
        asked = ask(EFFORTS, [USER], template_kwargs={"reasoning_effort": effort}, thinking=True)
        assert asked.text.startswith(f"{taken}True")
        assert bool(asked.changes) == (effort != taken)


def test_an_answer_goes_on_with_the_last_message():
    closing = EVERYTHING.replace(
        "{% endfor %}<assistant>", "<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    asked = ask(closing, [USER, message("assistant", "So far ")], continue_last=True)
    assert asked.text == "<user>hello<end><assistant>So far "
    assert asked.plan.continued


def test_a_picture_in_a_result_is_named_so_that_the_conversation_can_go_on():
    source = {"type": "base64", "media_type": "image/png", "data": "AA"}
    result = {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image", "source": source}]}
    call = {"type": "tool_use", "id": "a", "name": "look", "input": {}}
    turns = [USER, message("assistant", [call]), message("user", [result])]
    body = json.dumps({"model": "m", "max_tokens": 9, "messages": turns}).encode()
    assert "can't see" in chat_request("anthropic", body).messages[-1]["content"]
