"""The chat playground."""

import re

import pytest
from playwright.sync_api import expect

ENDLESS = "fake:tokens_per_s=30,answer=ship,length=100000,context=1000000"
ENTRIES = {
    "echo": "fake:tokens_per_s=50",
    "endless": ENDLESS,
    "slow": "fake:prefill_s=1.5,load_s=1.5,hold=20MiB",
    "small": "fake:context=16",
    "frail": f"{ENDLESS},crash_at=20",
    "thinker": "fake:answer=hm hm|<b>so</b> <img src=x onerror=alert(1)>,length=6",
}


@pytest.fixture(scope="module")
def site(serve_module):
    # Without patience an answer ends with its worker.
    return serve_module(ENTRIES, memory={"patience": 0})


def say(page, model, text):
    page.get_by_label("Model", exact=True).select_option(model)
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def test_an_answer_streams_in_and_is_measured(site, visit):
    page = visit(site).page
    say(page, "echo", "one two three four five six")
    expect(page.locator("#conversation .assistant .body")).to_have_text("one two three four five six")
    figures = page.locator("#conversation .figures")
    expect(figures).to_have_text(re.compile(r"^[\d.]+ tokens/s · first token after [\d.]+ m?s · 6 tokens$"))


def test_an_answer_can_be_stopped(site, visit):
    page = visit(site).page
    say(page, "endless", "go")
    expect(page.locator("#conversation .assistant")).to_contain_text("ship ship ship")
    expect(page.locator("#chat-status")).to_have_text("answering")
    expect(page.locator("[data-model=endless] .state")).to_have_text("answering")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#conversation .figures")).to_have_text(re.compile("^stopped · about"))
    expect(page.locator("[data-model=endless] .state")).to_have_text("ready")
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_the_parameters_and_the_whole_conversation_are_sent(site, visit):
    page = visit(site).page
    page.get_by_text("Parameters").click()
    page.get_by_label("temperature").fill("0.5")
    page.get_by_label("max_tokens").fill("2")
    page.get_by_label("system prompt").fill("be brief")
    say(page, "echo", "one two three")
    expect(page.locator("#conversation .figures")).to_contain_text("cut at the token limit")
    with page.expect_request("**/v1/chat/completions") as sent:
        say(page, "echo", "and then")
    body = sent.value.post_data_json
    assert (body["temperature"], body["max_tokens"], "top_p" in body) == (0.5, 2, False)
    assert [(one["role"], one["content"]) for one in body["messages"]] == [
        ("system", "be brief"),
        ("user", "one two three"),
        ("assistant", "one two"),
        ("user", "and then"),
    ]


def test_it_says_what_it_waits_for(site, visit):
    page = visit(site).page
    say(page, "slow", "a b c d")
    status = page.locator("#chat-status")
    expect(status).to_contain_text("waiting for the model to load")
    expect(status).to_have_text("reading the prompt: 0/4 tokens")
    expect(page.locator("#conversation .assistant .body")).to_have_text("a b c d")
    expect(status).to_be_empty()


def test_an_error_is_told_in_words_and_the_message_is_not_lost(site, visit):
    page = visit(site).page
    text = "word " * 20
    say(page, "small", text)
    expect(page.locator("#conversation .error")).to_contain_text("the prompt has 20 tokens, the context 16")
    expect(page.get_by_label("Message")).to_have_value(text)
    say(page, "small", "short")
    expect(page.locator("#conversation .assistant .body").last).to_have_text("short")


def test_an_answer_that_dies_on_the_way_keeps_what_was_said(site, visit):
    page = visit(site).page
    say(page, "frail", "go")
    expect(page.locator("#conversation .error")).to_contain_text("SIGKILL")
    expect(page.locator("#conversation .assistant .body")).to_contain_text("ship ship")


def test_code_stands_in_blocks_thoughts_apart_and_markup_stays_text(site, visit):
    visitor = visit(site)
    page = visitor.page
    say(page, "thinker", "```py\nprint('<i>')\n```\nafter <b>that</b>")
    expect(page.locator("#conversation .user pre")).to_have_text("print('<i>')")
    expect(page.locator("#conversation .user p")).to_have_text("after <b>that</b>")
    expect(page.locator("#conversation .assistant .body")).to_contain_text("<b>so</b> <img src=x")
    expect(page.locator("#conversation .thoughts")).to_contain_text("hm hm")
    expect(page.locator("#conversation img")).to_have_count(0)
    blocks = page.evaluate(
        """async (text) => (await import("/static/chat_text.js")).blocks(text)""",
        "a\n```\nx\n\ny\n```\n\nb\n```js\nopen",
    )
    assert blocks == [
        {"code": False, "text": "a"},
        {"code": True, "text": "x\n\ny"},
        {"code": False, "text": "b"},
        {"code": True, "text": "open"},
    ]
    assert visitor.errors == []


def test_conversations_are_kept_named_and_deleted(site, visit):
    visitor = visit(site)
    page = visitor.page
    kept, body = page.get_by_label("Conversations"), page.locator("#conversation .assistant .body")
    say(page, "thinker", "one two three")
    expect(page.locator("#conversation .figures")).to_be_visible()
    page.get_by_role("button", name="New", exact=True).press("Enter")
    expect(page.locator("#chat-hint")).to_be_visible()
    say(page, "echo", "other words")
    expect(page.locator("#conversation .figures")).to_be_visible()
    expect(kept.locator("option")).to_have_text(["other words", "one two three"])
    kept.select_option("one two three")
    # As it was: the thoughts folded, the figures, and the model that it was with.
    expect(body).to_contain_text("<b>so</b>")
    expect(page.locator("#conversation .thoughts div")).to_be_hidden()
    expect(page.locator("#conversation .figures")).to_contain_text("tokens")
    expect(page.get_by_label("Model", exact=True)).to_have_value("thinker")
    page.get_by_role("button", name="Rename").click()
    page.get_by_role("dialog").get_by_label("Name").fill("of ships")
    page.keyboard.press("Enter")
    expect(kept.locator("option")).to_have_text(["other words", "of ships"])
    page.reload()
    expect(kept.locator("option:checked")).to_have_text("of ships")
    with page.expect_request("**/v1/chat/completions") as sent:
        say(page, "echo", "four")
    assert [sorted(one) for one in sent.value.post_data_json["messages"]] == [["content", "role"]] * 3
    expect(page.locator("#conversation .figures")).to_have_count(2)
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(kept.locator("option")).to_have_text(["other words"])
    expect(body).to_have_text("other words")
    assert page.evaluate("Object.keys(localStorage).filter((key) => key.includes('conversation.')).length") == 1
    assert visitor.errors == []


def test_what_is_kept_is_bounded(site, visit):
    told = visit(site).page.evaluate(
        """async () => {
          const { list, open, save } = await import("/static/conversations.js");
          const turn = (chars) => [{ role: "user", content: "u" }, { role: "assistant", content: "x".repeat(chars) }];
          const keep = (id, messages) => save({ id, title: id, model: "", messages });
          for (let at = 0; at < 60; at++) keep(`small${at}`, turn(10));
          const many = list().map((one) => one.id);
          keep("long", [...turn(600_000), ...turn(600_000), ...turn(10)]);
          const long = open("long").messages.length;
          for (const id of "abcde") keep(id, turn(900_000));
          return { many: [many.length, many[0], many.at(-1)], long, large: list().map((one) => one.id), gone: open("a"),
                   keys: Object.keys(localStorage).filter((key) => key.startsWith("plimsoll.conversation.")).length };
        }"""
    )
    assert told == {
        "many": [50, "small59", "small10"],
        "long": 4,
        "large": ["e", "d", "c"],
        "gone": None,
        "keys": 3,
    }


def test_a_call_of_a_tool_is_readable_and_its_result_is_what_is_typed_next(site, visit):
    page = visit(site).page
    page.get_by_text("Parameters").click()
    page.get_by_label("tools").fill("[nothing")
    say(page, "echo", "hello")
    expect(page.locator("#tools:invalid")).to_be_focused()
    page.get_by_label("tools").fill('[{"name": "weather", "parameters": {"type": "object"}}]')
    say(page, "echo", 'call weather {"city": "Riga"}')
    expect(page.locator("#conversation .call")).to_contain_text("calls weather")
    expect(page.locator("#conversation .call pre")).to_have_text('{\n  "city": "Riga"\n}')
    expect(page.get_by_label("Message")).to_have_attribute("placeholder", re.compile("What weather answers"))
    page.reload()
    expect(page.locator("#conversation .call")).to_contain_text("Riga")
    with page.expect_request("**/v1/chat/completions") as sent:
        say(page, "echo", "rain")
    _, called, result = sent.value.post_data_json["messages"]
    assert called["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Riga"}'}
    assert result == {"role": "tool", "tool_call_id": called["tool_calls"][0]["id"], "content": "rain"}
    expect(page.locator("#conversation .assistant .body").last).to_have_text("rain")


def test_an_answer_that_the_page_leaves_is_kept_as_far_as_it_came(site, visit):
    page = visit(site).page
    say(page, "endless", "go")
    expect(page.locator("#conversation .assistant")).to_contain_text("ship ship ship")
    page.reload()
    expect(page.locator("#conversation .assistant")).to_contain_text("ship ship ship")
    expect(page.locator("[data-model=endless] .state")).to_have_text("ready")
