"""What coding agents and chat apps send: nothing of it stops a request, and what the model reads of it."""

import base64
import json
from collections.abc import Sequence
from typing import Any

import pytest

from plimsoll.engine.protocol import LEAST_TOP_P, ChatRequest, Format
from plimsoll.errors import BadRequest
from plimsoll.http import left_out
from plimsoll.http.bodies import chat_request
from plimsoll.http.left_out import LeftOut

USER = {"role": "user", "content": "look"}
ASSISTANT = {"role": "assistant", "content": "ok"}
IMAGE_URL = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
INPUT_IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "high"}
SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}}


def asked(api: str, **body: Any) -> ChatRequest:
    plain = {"model": "tiny"} | ({"max_tokens": 5} if api == "anthropic" else {})
    return chat_request(api, json.dumps(plain | body).encode())


def chat(**body: Any) -> ChatRequest:
    return asked("openai", **{"messages": [USER]} | body)


def response(**body: Any) -> ChatRequest:
    return asked("responses", **{"input": "look"} | body)


def claude(**body: Any) -> ChatRequest:
    return asked("anthropic", **{"messages": [USER]} | body)


def names(request: ChatRequest) -> list[str]:
    return [tool.name for tool in request.tools]


def contents(request: ChatRequest) -> list[str]:
    return [message["content"] for message in request.messages]


# ---- tools


@pytest.mark.parametrize("kind", ["web_search", "image_generation", "tool_search", "file_search", "mcp", "made_up"])
def test_a_tool_that_a_response_wants_hosted_is_left_out_and_counted(kind: str) -> None:
    left_out.count_in(counts := LeftOut())
    request = response(tools=[{"type": "function", "name": "f"}, {"type": kind, "vector_store_ids": []}])
    assert names(request) == ["f"]
    assert counts.counts == {("tool", kind): 1}


def test_kinds_that_clients_make_up_do_not_make_labels_without_end() -> None:
    counts = LeftOut()
    for number in range(200):
        counts.note("part", f"kind-{number}")
    assert len(counts.counts) < 80
    assert sum(counts.counts.values()) == 200


def test_a_namespaces_functions_are_offered_and_a_taken_name_gets_the_namespace() -> None:
    space = {"type": "namespace", "name": "agents", "tools": [{"type": "function", "name": one} for one in ("f", "g")]}
    request = response(
        tools=[space, {"type": "function", "name": "f"}],
        input=[
            {"role": "user", "content": "look"},
            {"type": "function_call", "call_id": "a", "namespace": "agents", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "b", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a", "output": "1"},
            {"type": "function_call_output", "call_id": "b", "output": "2"},
        ],
    )
    assert names(request) == ["f", "agents__f", "g"]
    assert [call["function"]["name"] for call in request.messages[1]["tool_calls"]] == ["agents__f", "f"]


def test_a_custom_tool_is_a_function_with_one_string_that_says_its_grammar() -> None:
    form = {"type": "grammar", "syntax": "lark", "definition": "start: WORD"}
    for request in (
        response(tools=[{"type": "custom", "name": "patch", "description": "Patches.", "format": form}]),
        chat(tools=[{"type": "custom", "custom": {"name": "patch", "description": "Patches.", "format": form}}]),
    ):
        (tool,) = request.tools
        assert tool.parameters["required"] == ["input"]
        assert tool.description.startswith("Patches.")
        assert "start: WORD" in tool.description


def test_some_tools_may_be_allowed_out_of_all() -> None:
    tools = [{"type": "function", "name": name} for name in ("a", "b", "c")]
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "b"}]}
    request = response(tools=tools, tool_choice=choice)
    assert (names(request), request.tool_choice) == (["b"], "required")


@pytest.mark.parametrize("name", ["server.tool", "mcp/server/tool", "a" * 200, "ns:tool", "tool@2"])
def test_names_of_tools_may_be_long_and_have_dots_and_slashes(name: str) -> None:
    assert names(chat(tools=[{"type": "function", "function": {"name": name}}])) == [name]
    assert names(response(tools=[{"type": "function", "name": name}])) == [name]


def test_tools_that_anthropics_servers_run_are_left_out() -> None:
    own = {"name": "read", "input_schema": SCHEMA}
    hosted = [{"type": "web_search_20250305", "name": "web_search", "max_uses": 5}, {"type": "mcp_toolset"}]
    assert names(claude(tools=[*hosted, own])) == ["read"]


def test_a_deferred_tool_is_offered_where_it_is_referenced_and_only_then() -> None:
    tools = [
        {"name": "search", "input_schema": SCHEMA},
        {"name": "fetch", "description": "Gets a page.", "input_schema": SCHEMA, "defer_loading": True},
        {"name": "other", "input_schema": SCHEMA, "defer_loading": True},
    ]
    assert names(claude(tools=tools)) == ["search"]
    call = {"type": "tool_use", "id": "a", "name": "search", "input": {"path": "fetch"}}
    found = {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "tool_reference", "tool_name": "fetch"}]}
    messages = [USER, {"role": "assistant", "content": [call]}, {"role": "user", "content": [found]}]
    request = claude(tools=tools, messages=messages)
    assert [(tool.name, tool.in_messages) for tool in request.tools] == [("search", False), ("fetch", True)]
    assert "Gets a page." in request.messages[-1]["content"]
    # Nobody here can refer to a tool that Anthropic's own search would have found.
    hosted = [{"type": "tool_search_tool_regex_20251119", "name": "tool_search_tool_regex"}]
    assert names(claude(tools=[*tools, *hosted])) == ["search", "fetch", "other"]


def test_tools_may_be_added_and_taken_away_in_the_middle() -> None:
    definition = {"name": "fetch", "description": "Gets a page.", "input_schema": SCHEMA}
    added = {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": definition}}
    removed = {"type": "tool_removal", "tool": {"type": "tool_reference", "name": "read"}}
    messages = [USER, {"role": "assistant", "content": "ok"}, {"role": "system", "content": [added, removed]}, USER]
    request = claude(tools=[{"name": "read", "input_schema": SCHEMA}], messages=messages)
    assert names(request) == ["read", "fetch"]
    assert "Gets a page." in contents(request)[2]
    assert "read can't be called any more" in contents(request)[2]


# ---- items


def test_items_of_other_types_are_left_out_and_calls_of_all_kinds_are_told() -> None:
    request = response(
        input=[
            {"type": "item_reference", "id": "msg_lost"},
            {"role": "user", "content": "look"},
            {"type": "web_search_call", "id": "ws_1", "status": "completed"},
            {"type": "compaction", "encrypted_content": "x"},
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]},
            {"type": "custom_tool_call", "call_id": "a", "name": "patch", "input": "*** Begin"},
            {"type": "custom_tool_call_output", "call_id": "a", "output": "done"},
            {"type": "local_shell_call", "call_id": "b", "action": {"type": "exec", "command": ["ls"]}},
            {"type": "local_shell_call_output", "call_id": "b", "output": "a.py"},
        ]
    )
    told = [(one["role"], one["content"], one.get("reasoning_content")) for one in request.messages]
    assert told == [
        ("user", "look", None),
        ("assistant", "", "Hm."),
        ("tool", "done", None),
        ("assistant", "", None),
        ("tool", "a.py", None),
    ]
    (patch,) = request.messages[1]["tool_calls"]
    assert patch["function"] == {"name": "patch", "arguments": {"input": "*** Begin"}}
    (shell,) = request.messages[3]["tool_calls"]
    assert shell["function"] == {"name": "local_shell", "arguments": {"command": ["ls"]}}


def test_the_clients_shell_is_offered_as_a_function_that_takes_a_command() -> None:
    request = response(tools=[{"type": "local_shell"}, {"type": "function", "name": "f"}])
    assert names(request) == ["local_shell", "f"]
    assert request.tools[0].parameters["required"] == ["command"]
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "local_shell"}, {"type": "mcp"}]}
    request = response(tools=[{"type": "local_shell"}, {"type": "function", "name": "f"}], tool_choice=allowed)
    assert (names(request), request.tool_choice) == (["local_shell"], "required")


# ---- content


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ({"type": "tool_reference", "tool_name": "fetch"}, "fetch"),
        ({"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "ships"}}, "ships"),
        ({"type": "mcp_tool_use", "id": "s", "name": "lookup", "server_name": "x", "input": {}}, "lookup"),
        ({"type": "web_search_tool_result", "tool_use_id": "s", "content": [{"title": "Ships"}]}, "Ships"),
        ({"type": "search_result", "source": "a.md", "title": "A", "content": [{"type": "text", "text": "b"}]}, "b"),
        ({"type": "document", "title": "T", "source": {"type": "text", "data": "words"}}, "T\nwords"),
        ({"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "in"}]}}, "in"),
        ({"type": "container_upload", "file_id": "file_1"}, "document"),
        ({"type": "hologram", "volume": 3}, "hologram"),
        ({"type": "hologram", "text": "shown"}, "shown"),
    ],
)
def test_blocks_of_every_kind_are_told_in_words(part: dict[str, Any], text: str) -> None:
    assert text in contents(claude(messages=[{"role": "user", "content": [part, {"type": "text", "text": "x"}]}]))[0]
    said = claude(messages=[USER, {"role": "assistant", "content": [part]}, USER])
    assert text in contents(said)[1]


def test_a_file_of_text_is_read_and_another_is_refused_where_it_is_asked_about() -> None:
    data = base64.b64encode(b"the words").decode()
    file = {"type": "input_file", "filename": "a.txt", "file_data": f"data:text/plain;base64,{data}"}
    assert contents(response(input=[{"role": "user", "content": [file]}])) == ["a.txt\nthe words"]
    book = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": data}}
    with pytest.raises(BadRequest, match=r"messages\[0\].content\[0\] is a document"):
        claude(messages=[{"role": "user", "content": [book]}])
    assert "can't read" in contents(claude(messages=[{"role": "user", "content": [book]}, ASSISTANT, USER]))[0]


def test_an_image_is_a_placeholder_in_history_and_refused_in_what_is_asked_now() -> None:
    for part in (IMAGE_URL, IMAGE):
        past = [{"role": "user", "content": [{"type": "text", "text": "see"}, part]}, ASSISTANT, USER]
        for request in (chat(messages=past), claude(messages=past)):
            assert "can't see" in contents(request)[0]
        with pytest.raises(BadRequest, match=r"messages\[0\].content\[1\].type is"):
            chat(messages=past[:1])
        with pytest.raises(BadRequest, match=r"messages\[0\].content\[1\].type is"):
            claude(messages=past[:1])
    past = [{"role": "user", "content": [INPUT_IMAGE]}, ASSISTANT, USER]
    assert "can't see" in contents(response(input=past))[0]
    with pytest.raises(BadRequest, match=r"input\[0\].content\[0\].type is"):
        response(input=past[:1])
    past = [{"role": "user", "content": "see", "images": ["AA=="]}, ASSISTANT, USER]
    assert "can't see" in contents(asked("ollama", messages=past))[0]
    with pytest.raises(BadRequest, match=r"messages\[0\].images"):
        asked("ollama", messages=past[:1])


def test_an_image_in_a_tools_result_is_a_placeholder() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    calling = {"role": "assistant", "content": None, "tool_calls": [call]}
    told = chat(messages=[USER, calling, {"role": "tool", "tool_call_id": "a", "content": [IMAGE_URL]}])
    assert "can't see" in contents(told)[-1]
    output = {"type": "function_call_output", "call_id": "a", "output": [INPUT_IMAGE]}
    items = [USER, {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}, output]
    assert "can't see" in contents(response(input=items))[-1]
    use = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": [IMAGE]}]}
    assert "can't see" in contents(claude(messages=[USER, {"role": "assistant", "content": [use]}, result]))[-1]


def test_thoughts_and_refusals_in_parts_are_read() -> None:
    parts = [{"type": "thinking", "thinking": "Hm."}, {"type": "output_text", "text": "a"}, {"type": "refusal"}]
    (_, said, _) = chat(messages=[USER, {"role": "assistant", "content": parts}, USER]).messages
    assert (said["content"], said["reasoning_content"]) == ("a", "Hm.")
    (_, said, _) = chat(messages=[USER, {"role": "assistant", "content": "a", "reasoning": "Hm."}, USER]).messages
    assert said["reasoning_content"] == "Hm."


# ---- nulls and sentinels


def test_nulls_and_odd_shapes_are_taken_as_they_are_meant() -> None:
    call = {"id": None, "type": None, "function": {"name": "f", "arguments": {"a": 1}}}
    request = chat(
        messages=[
            {"role": "developer", "content": None},
            {"role": "user", "content": []},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "x"},
            {"role": "function", "name": "f", "content": "2"},
            USER,
            USER,
        ]
    )
    assert [one["role"] for one in request.messages] == ["system", "user", "assistant", "tool", "tool", "user", "user"]
    assert request.messages[2]["tool_calls"][0]["type"] == "function"
    assert contents(claude(messages=[{"role": "user"}])) == [""]
    assert contents(response(input=[{"role": "user"}])) == [""]
    function = {"name": "f", "arguments": '{"a": 1}'}
    ollama = asked("ollama", messages=[{"role": "assistant", "tool_calls": [{"function": function}]}, USER])
    assert ollama.messages[0]["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'


def test_values_that_mean_no_limit_are_taken_so() -> None:
    request = chat(top_k=-1, top_p=0, max_tokens=-1, stop=["", *"abcdef"])
    assert (request.sampling.top_k, request.sampling.top_p, request.max_tokens) == (0, LEAST_TOP_P, None)
    assert request.stop == tuple("abcdef")
    assert chat(stop="", max_completion_tokens=0).stop == ()
    assert response(max_output_tokens=-1).max_tokens is None
    ollama = asked("ollama", messages=[USER], options={"stop": "", "top_p": 0, "num_predict": -1})
    assert (ollama.stop, ollama.sampling.top_p) == ((), LEAST_TOP_P)
    assert claude(top_p=0, top_k=-1, stop_sequences=[""]).sampling.top_p == LEAST_TOP_P


# ---- what would change the answer


def test_a_schema_is_followed_however_it_is_given() -> None:
    for given in (
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"guided_json": SCHEMA},
        {"guided_json": json.dumps(SCHEMA)},
        {"structured_outputs": {"json": SCHEMA}},
    ):
        assert chat(**given).format == Format(SCHEMA)


def test_the_assistants_last_message_is_gone_on_with_unless_the_client_says_no() -> None:
    begun = [USER, {"role": "assistant", "content": "It is"}]
    assert chat(messages=begun).continue_last
    assert claude(messages=begun).continue_last
    assert response(input=begun).continue_last
    assert not response(input=[*begun, USER]).continue_last
    call = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
    assert not response(input=[*begun, call]).continue_last
    assert chat(messages=begun, continue_final_message=True, add_generation_prompt=False).continue_last
    assert not chat(messages=begun, add_generation_prompt=True).continue_last
    assert not chat(messages=begun, continue_final_message=False).continue_last
    with pytest.raises(BadRequest, match="an answer can't do both"):
        chat(messages=begun, continue_final_message=True, add_generation_prompt=True)


# ---- Claude Code


def test_the_billing_line_that_changes_with_every_session_is_not_read() -> None:
    def system(version: str) -> ChatRequest:
        line = {"type": "text", "text": f"x-anthropic-billing-header: cc_version={version}; cc_entrypoint=cli;"}
        return claude(system=[line, {"type": "text", "text": "Be brief."}])

    assert system("1.a").messages == system("1.b").messages == claude(system="Be brief.").messages


def test_what_the_system_says_behind_the_first_message_stands_before_it() -> None:
    rules = {"role": "system", "content": [{"type": "text", "text": "Rules."}]}
    request = claude(system="Be brief.", messages=[USER, rules])
    assert contents(request) == ["Be brief.", "Rules.", "look"]
    # One that comes later stays in its place: the prompt before it was read already.
    late = claude(messages=[USER, rules, ASSISTANT, {"role": "system", "content": "Now."}, USER])
    assert contents(late) == ["Rules.", "look", "ok", "Now.", "look"]


def test_the_reminder_that_differs_between_sessions_is_read_behind_those_that_do_not() -> None:
    def said(*texts: str, before: Sequence[Any] = ()) -> str:
        content = [{"type": "text", "text": text} for text in texts]
        return str(contents(claude(messages=[*before, {"role": "user", "content": content}]))[-1])

    git, rules = (
        "<system-reminder>\ngit: clean\n</system-reminder>",
        "<system-reminder>\nBe kind.\n</system-reminder>\n",
    )
    assert said(git, rules, "look") == f"{rules}\n{git}\nlook"
    # One that stands alone, one behind the user's words and those of later messages stay where they are.
    assert said(git, "look", rules) == f"{git}\nlook\n{rules}"
    assert said(git, rules, before=[USER, ASSISTANT]) == f"{git}\n{rules}"


def test_efforts_and_cleared_thoughts_are_heeded() -> None:
    assert claude(output_config={"effort": "high"}).template_kwargs == {"reasoning_effort": "high"}
    thought = {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "a"}]}
    messages = [USER, thought, USER, thought, USER]

    def thoughts(keep: Any) -> int:
        management = {"edits": [{"type": "clear_thinking_20251015"} | ({"keep": keep} if keep else {})]}
        request = claude(messages=messages, context_management=management)
        return sum("reasoning_content" in one for one in request.messages)

    assert [thoughts(keep) for keep in ("all", None, {"type": "thinking_turns", "value": 2})] == [2, 1, 2]
