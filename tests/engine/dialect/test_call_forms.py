"""Calls under a grammar stand in the family's own form, and come back through its reader as the calls they are."""

import json
import random
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from plimsoll.engine.chat.prompts import PromptMaker
from plimsoll.engine.chat.running import AnswerParts
from plimsoll.engine.dialect.call_form import HARMONY, HERMES
from plimsoll.engine.load.loading import TokenizerReader
from plimsoll.engine.protocol import ChatRequest, Format, Tool

BEGIN = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% if m.tool_calls %}"
)
END = "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
EACH = "{% for c in m.tool_calls %}{% set f = c.function %}"
COMMA = "{{ ', ' if not loop.last }}{% endfor %}"
OBJECT = "{{ f.arguments | tojson }}"
KEYS = "{% for k, v in f.arguments.items() %}"
VALUE = "{{ v if v is string else v | tojson }}"
# What stands for a family's template: how it writes calls.
WRITES = {
    "json": EACH + '<tool_call>\n{"name": "{{ f.name }}", "arguments": ' + OBJECT + "}\n</tool_call>"
    "{{ '\\n' if not loop.last }}{% endfor %}",
    "new marks": EACH + "<<call {{ f.name }}>>" + OBJECT + "{% endfor %}",
    "tags": EACH + "<tool_call>\n<function={{ f.name }}>\n" + KEYS + "<parameter={{ k }}>\n" + VALUE
    + "\n</parameter>\n{% endfor %}</function>\n</tool_call>\n{% endfor %}",
    "attributes": "<minimax:tool_call>\n" + EACH + '<invoke name="{{ f.name }}">\n' + KEYS
    + '<parameter name="{{ k }}">' + VALUE + "</parameter>\n{% endfor %}</invoke>\n{% endfor %}</minimax:tool_call>",
    "keys and values": EACH + "<tool_call>{{ f.name }}\n" + KEYS + "<arg_key>{{ k }}</arg_key>\n<arg_value>" + VALUE
    + "</arg_value>\n{% endfor %}</tool_call>{% endfor %}",
    "a list with ids": "[TOOL_CALLS][" + EACH + '{"name": "{{ f.name }}", "arguments": ' + OBJECT
    + ', "id": "{{ c.id }}"}' + COMMA + "]",
    "name and json": EACH + "[TOOL_CALLS]{{ f.name }}[CALL_ID]{{ c.id }}[ARGS]" + OBJECT + "{% endfor %}",
    "counted": "<|tool_calls_section_begin|>" + EACH + "<|tool_call_begin|>functions.{{ f.name }}:{{ loop.index0 }}"
    "<|tool_call_argument_begin|>" + OBJECT + "<|tool_call_end|>{% endfor %}<|tool_calls_section_end|>",
    "python": "<|tool_call_start|>[" + EACH + "{{ f.name }}(" + KEYS + "{{ k }}={{ v | tojson }}" + COMMA + ")" + COMMA
    + "]<|tool_call_end|>",
    "own quotes": EACH + "<|tool_call>call:{{ f.name }}{% raw %}{{% endraw %}" + KEYS
    + '{{ k }}:{% if v is string %}<|"|>{{ v }}<|"|>{% else %}{{ v | tojson }}{% endif %}'
    "{{ ',' if not loop.last }}{% endfor %}}<tool_call|>{% endfor %}",
    "no mark": "{% if m.tool_calls | length > 1 %}{{ raise_exception('one') }}{% endif %}" + EACH
    + '{"name": "{{ f.name }}", "parameters": ' + OBJECT + "}{% endfor %}",
}  # fmt: skip
MARKS = (
    *("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", '<|"|>'),
    *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_end|>"),
    *("<|tool_call_argument_begin|>", "<|tool_call_start|>", "<|tool_call>", "<tool_call|>", "<minimax:tool_call>"),
)
FORMS = [name for name in WRITES if name != "new marks"]
PARAMETERS = {
    "type": "object",
    "properties": {
        "path": {"type": "string", "maxLength": 4},
        "line": {"type": "integer", "minimum": 0, "maximum": 99},
        "mode": {"enum": ["read", "write it", None]},
        "code": {"type": "string", "pattern": "^[a-c]{2}x$"},
        "deep": {"$ref": "#/$defs/deep"},
    },
    "$defs": {"deep": {"type": "object", "properties": {"k": {"enum": [1, "é"]}}, "required": ["k"],
                       "additionalProperties": False}},
    "required": ["path", "mode"],
    "additionalProperties": False,
}  # fmt: skip
EDIT = Tool("edit_file", "", PARAMETERS, strict=True)
CLOCK = Tool("clock", "", {"type": "object", "properties": {}, "additionalProperties": False}, strict=True)
LAX = Tool("lax", "", {"type": "object", "properties": {"a": {"type": "integer"}}})
GOOD = {"path": "a/b", "mode": "read", "deep": {"k": "é"}}
BAD = {"path": "a/b", "mode": "sing"}
PROSE = 'I look.\n```json\n{"name": "x"}\n```\n<b>5 < 6</b> [y](z) é🚢 '


def letters():
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + index) for index in range(len(others))]


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """A maker of prompts for a way of writing calls, with a token for each byte and each mark."""
    made = {}

    def family(way, marks=MARKS):
        if (way, marks) not in made:
            folder = tmp_path_factory.mktemp("family")
            tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(letters())}, merges=[]))
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            tokenizer.decoder = decoders.ByteLevel()
            tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
            tokenizer.save(str(folder / "tokenizer.json"))
            template = BEGIN + WRITES.get(way, way) + END
            config = {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|im_end|>",
                "chat_template": template,
            }
            (folder / "tokenizer_config.json").write_text(json.dumps(config))
            (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
            read = TokenizerReader().read(folder).result()
            made[way, marks] = read, PromptMaker(read, 10_000, len(read))
        return made[way, marks]

    return family


def matcher(maker, tools, choice="auto", **rest):
    """The request's matcher, without the trial in another process."""
    chat = ChatRequest([{"role": "user", "content": "hi"}], tools=tools, tool_choice=choice, **rest)
    made = maker._grammars._made(maker.prepare(chat)._grammar)
    assert not isinstance(made, str), made
    return made


def takes(tokenizer, found, text):
    """Whether the grammar allows the whole text to be the answer."""
    tokens = tokenizer.encode(text, add_special_tokens=False)
    return found.try_consume_tokens(tokens) == len(tokens) and found.is_accepting()


def read(maker, tools, text):
    class Pieces:
        last_segment = ""

        def add_token(self, index):
            self.last_segment = text[index]

        def finalize(self):
            self.last_segment = ""

    plan = maker.prepare(ChatRequest([{"role": "user", "content": "hi"}], tools=tools, tool_choice="none")).plan
    answer = AnswerParts(Pieces(), (), replace(plan, tools=tools))
    calls, content = [], ""
    for part in [answer.add(index) for index in range(len(text))] + [answer.finish()]:
        content += part.text
        for index, piece in part.calls:
            if index == len(calls):
                calls.append(["", ""])
            calls[index][0] += piece.name
            calls[index][1] += piece.arguments
    return content.strip(), [(name, json.loads(arguments or "{}")) for name, arguments in calls]


def walk(tokenizer, found, seed):
    """A text that a model without any sense writes under the grammar."""
    chance, ends, tokens = random.Random(seed), set(tokenizer.eos_token_ids), []
    while len(tokens) < 1500 and not found.is_stopped():
        bits = np.unpackbits(np.frombuffer(found.compute_bitmask(), np.uint8), bitorder="little")[: len(tokenizer)]
        allowed = np.flatnonzero(bits).tolist()
        weights = [
            30 if tokenizer.decode([one])[-1:] in set('>"}])<\n') else 9 if one in ends else 1 for one in allowed
        ]
        (token,) = chance.choices(allowed, weights)
        if token in ends:
            return tokenizer.decode(tokens)
        assert found.consume_token(token)
        tokens.append(token)
    return tokenizer.decode(tokens) if found.is_accepting() else None


@pytest.mark.parametrize("way", FORMS)
def test_a_forced_call_stands_in_the_familys_form_and_comes_back(families, way):
    tokenizer, maker = families(way)
    form = maker.dialect.form
    assert (form == HERMES) == (way == "json")
    forced = matcher(maker, (EDIT, CLOCK), "required")
    assert takes(tokenizer, forced.deep_copy(), form.write([("edit_file", GOOD)]))
    assert takes(tokenizer, forced.deep_copy(), form.write([("clock", {})]))
    assert not takes(tokenizer, forced.deep_copy(), form.write([("edit_file", BAD)]))
    assert not takes(tokenizer, forced.deep_copy(), form.write([("other", {})]))
    if form.between is not None:
        assert takes(tokenizer, forced.deep_copy(), form.write([("clock", {}), ("edit_file", GOOD), ("clock", {})]))
    schemas = {tool.name: tool.parameters for tool in (EDIT, CLOCK)}
    walked = 0
    for seed in range(3):
        if (text := walk(tokenizer, forced.deep_copy(), seed)) is None:
            continue
        content, calls = read(maker, (EDIT, CLOCK), text)
        assert calls, text
        assert content == "", text
        for name, arguments in calls:
            jsonschema.validate(arguments, schemas[name])
        walked += 1
    assert walked


@pytest.mark.parametrize("way", FORMS)
def test_a_call_of_a_strict_tool_follows_its_schema_in_a_free_answer(families, way):
    tokenizer, maker = families(way)
    form = maker.dialect.form
    free = matcher(maker, (EDIT, CLOCK, LAX))
    before = "" if way == "no mark" else PROSE

    def allows(text):
        return takes(tokenizer, free.deep_copy(), text)

    assert allows(PROSE)
    assert allows("")
    assert allows(before + form.write([("edit_file", GOOD)]))
    assert not allows(before + form.write([("edit_file", BAD)]))
    assert allows(form.write([("lax", {"a": 5, "more": "x"})]))
    for other in (HERMES, form):
        assert not allows(other.write([("edit_file", BAD)]))
    assert not allows(json.dumps({"name": "edit_file", "arguments": BAD}))
    assert not allows("```json\n" + json.dumps({"name": "edit_file", "arguments": BAD}) + "\n```")
    if form.between is not None:
        assert allows(form.write([("clock", {}), ("edit_file", GOOD)]))
        assert not allows(form.write([("clock", {}), ("edit_file", BAD)]))


def test_calls_without_a_strict_tool_are_left_to_the_model(families):
    _, maker = families("tags")
    assert maker.prepare(ChatRequest([{"role": "user", "content": "hi"}], tools=(LAX,))).constraint is None


def test_marks_that_are_plain_text_begin_a_call_too(families):
    tokenizer, maker = families("tags", ("<|im_start|>", "<|im_end|>"))
    form = maker.dialect.form
    free = matcher(maker, (EDIT, LAX))
    assert takes(tokenizer, free.deep_copy(), PROSE + form.write([("edit_file", GOOD)]) + "\nDone.")
    assert not takes(tokenizer, free.deep_copy(), PROSE + form.write([("edit_file", BAD)]))


def test_a_form_that_nobody_can_read_gives_way_to_the_one_most_models_know(families):
    _, maker = families("new marks")
    assert maker.dialect.form == HERMES


def test_a_json_answer_may_be_a_call_in_the_familys_form(families):
    tokenizer, maker = families("keys and values")
    found = matcher(maker, (EDIT,), format=Format({"type": "integer"}))
    assert takes(tokenizer, found.deep_copy(), "5")
    assert takes(tokenizer, found.deep_copy(), maker.dialect.form.write([("edit_file", GOOD)]))
    assert not takes(tokenizer, found.deep_copy(), maker.dialect.form.write([("edit_file", BAD)]))


def test_marks_around_an_answer_stand_around_json_as_well(families):
    marks = (*MARKS, "<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_THINKING|>", "<|END_THINKING|>")
    template = (
        WRITES["json"] + "{% endif %}{% if m.role == 'assistant' and m.content %}<|START_RESPONSE|>{{ m.content }}"
    )
    template = template + "<|END_RESPONSE|>"
    tokenizer, maker = families(template, marks)
    found = matcher(maker, (), format=Format({"type": "integer"}))
    assert maker.dialect.form.answer_begin in ("", "<|START_RESPONSE|>")
    assert takes(tokenizer, found, f"{maker.dialect.form.answer_begin}5{maker.dialect.form.answer_end}")


def test_a_strict_tool_of_gpt_oss_is_held_in_its_channel(families):
    template = (
        "{% endif %}{% endfor %}<|start|>assistant{% for m in [] %}{% if false %}<|channel|><|message|><|constrain|>"
    )
    marks = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>", "<|im_end|>")
    tokenizer, maker = families(template, marks)
    assert maker.dialect.form is HARMONY
    free = matcher(maker, (EDIT, LAX))
    assert takes(tokenizer, free.deep_copy(), "<|channel|>final<|message|>" + PROSE)
    assert takes(tokenizer, free.deep_copy(), HARMONY.write([("edit_file", GOOD)]))
    assert not takes(tokenizer, free.deep_copy(), HARMONY.write([("edit_file", BAD)]))
    other = " to=functions.edit_file<|channel|>commentary json<|message|>" + json.dumps(BAD)
    assert not takes(tokenizer, free.deep_copy(), other)
    both = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant" + HARMONY.write([("lax", {"z": 1})])
    assert takes(tokenizer, free.deep_copy(), both)
