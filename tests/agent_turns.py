"""Sessions of coding agents and chat apps in small: the shapes that they send, turn by turn, in words of our own.

Each session is a list of (path, body): a first message that has the fake engine call a tool, the call with its result,
and a second message.
"""

from typing import Any

PATHS = {
    "openai": "/v1/chat/completions",
    "responses": "/v1/responses",
    "anthropic": "/v1/messages",
    "ollama": "/api/chat",
}
PICTURE = "iVBORw0KGgo="
SCHEMA = {
    "type": "object",
    "properties": {"cmd": {"type": "string"}},
    "required": ["cmd"],
    "additionalProperties": False,
}
ASK = 'call run {"cmd": "ls"}'
RESULT = "ship.py\nsea.md"


def _claude() -> list[dict[str, Any]]:
    """Claude Code: a line for billing, reminders before the message, rules behind it, tools that come later."""
    tools = [
        {"name": "run", "description": "Runs a command.", "input_schema": SCHEMA},
        {"name": "ToolSearch", "description": "Finds tools.", "input_schema": SCHEMA},
        {"name": "WebFetch", "description": "Fetches a page.", "input_schema": SCHEMA, "defer_loading": True},
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
    ]
    cached = {"cache_control": {"type": "ephemeral"}}
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=9.9.9.abc; cc_entrypoint=cli;"},
        {"type": "text", "text": "You are an agent for ships.", **cached},
    ]
    first = [
        {"type": "text", "text": "<system-reminder>\nThe date is a date.\n</system-reminder>"},
        {"type": "text", "text": ASK},
    ]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": first},
        {"role": "system", "content": [{"type": "text", "text": "# Rules\nBe brief.", **cached}]},
    ]
    call = {"type": "tool_use", "id": "toolu_0123456789abcdef", "name": "run", "input": {"cmd": "ls"}}
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}}
    reference = {"type": "tool_reference", "tool_name": "WebFetch"}
    content = [{"type": "text", "text": RESULT}, image, reference]
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": content, "is_error": False, **cached}
    answered = [*messages, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    said = [{"type": "thinking", "thinking": "Two files.", "signature": ""}, {"type": "text", "text": "Two."}]
    third = [*answered, {"role": "assistant", "content": said}, {"role": "user", "content": "and now?"}]
    more = {
        "system": system,
        "tools": tools,
        "metadata": {"user_id": "x"},
        "max_tokens": 320,
        "thinking": {"type": "adaptive", "display": "omitted"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
    }
    return [{"messages": one, **more} for one in (messages, answered, third)]


def _codex() -> list[dict[str, Any]]:
    """Codex: developers, a namespace, hosted tools, calls and results as items, a developer in the middle."""

    def message(role: str, *texts: str) -> dict[str, Any]:
        kind = "output_text" if role == "assistant" else "input_text"
        parts = [{"type": kind, "text": text} for text in texts]
        return {"type": "message", "id": f"msg_{role}", "role": role, "content": parts}

    first = [message("developer", "You are an agent.", "Skills: none."), message("user", "<cwd>/sea</cwd>")]
    first.append(message("user", ASK))
    call = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "run", "arguments": '{"cmd": "ls"}'}
    image = {"type": "input_image", "image_url": f"data:image/png;base64,{PICTURE}", "detail": "high"}
    output = {"type": "function_call_output", "id": "fco_1", "call_id": "call_1", "output": RESULT}
    seen = {**output, "call_id": "call_2", "output": [image]}
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]}
    answered = [*first, reasoning | {"encrypted_content": None}, call, output]
    third = [*answered, {**call, "call_id": "call_2", "namespace": "team", "name": "look"}, seen]
    third += [message("assistant", "Two."), message("developer", "Later rules."), message("user", "and now?")]
    tools = [
        {"type": "function", "name": "run", "description": "Runs.", "strict": False, "parameters": SCHEMA},
        {"type": "namespace", "name": "team", "tools": [{"type": "function", "name": "look", "parameters": SCHEMA}]},
        {"type": "custom", "name": "patch", "format": {"type": "grammar", "syntax": "lark", "definition": "start: X"}},
        {"type": "web_search", "external_web_access": False},
        {"type": "local_shell"},
    ]
    shell = {"type": "local_shell_call", "id": "lsh_1", "call_id": "call_3", "status": "completed"}
    third.append(shell | {"action": {"type": "exec", "command": ["ls"], "env": {}}})
    third.append({"type": "local_shell_call_output", "id": "call_3", "output": '{"output": "sea.md"}'})
    third.append(message("user", "and now?"))
    more = {
        "tools": tools,
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"summary": "auto"},
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "x",
        "client_metadata": {"turn_id": "x"},
    }
    return [{"input": one, **more} for one in (first, answered, third)]


def _chat(*, developer: bool = False, null: bool = True) -> list[dict[str, Any]]:
    """opencode, Cline, Continue, Qwen Code: chat completions with tools."""
    first = [{"role": "developer" if developer else "system", "content": "You are an agent."}]
    first.append({"role": "user", "content": [{"type": "text", "text": ASK}] if developer else ASK})
    call = {
        "id": "call_0123456789abcdef",
        "type": "function",
        "function": {"name": "run", "arguments": '{"cmd": "ls"}'},
    }
    calling = {"role": "assistant", "content": None if null else "", "tool_calls": [call]}
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}
    content = [{"type": "text", "text": RESULT}, image] if developer else RESULT
    answered = [*first, calling, {"role": "tool", "tool_call_id": call["id"], "name": "run", "content": content}]
    said = {"role": "assistant", "content": "Two.", "reasoning_content": "Two files."}
    third = [*answered, said, {"role": "user", "content": "One more thing."}, {"role": "user", "content": "and now?"}]
    function = {"name": "run", "description": "Runs.", "parameters": SCHEMA}
    more = {"tools": [{"type": "function", "function": function}], "stream_options": {"include_usage": True}}
    more |= {"max_tokens": -1, "top_k": -1} if developer else {"max_tokens": 320, "tool_choice": "auto"}
    return [{"messages": one, **more} for one in (first, answered, third)]


def _ollama() -> list[dict[str, Any]]:
    """Open WebUI and aider: Ollama's chat."""
    first = [{"role": "system", "content": "You are an agent.", "images": []}, {"role": "user", "content": ASK}]
    calling = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "run", "arguments": {"cmd": "ls"}}}],
    }
    answered = [*first, calling, {"role": "tool", "tool_name": "run", "content": RESULT, "images": [PICTURE]}]
    third = [*answered, {"role": "assistant", "content": "Two."}, {"role": "user", "content": "and now?"}]
    function = {"name": "run", "description": "Runs.", "parameters": SCHEMA}
    more = {"tools": [{"type": "function", "function": function}], "options": {"stop": "", "num_ctx": 9000}}
    return [{"messages": one, **more} for one in (first, answered, third)]


SESSIONS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "Claude Code": ("anthropic", _claude()),
    "Codex": ("responses", _codex()),
    "opencode": ("openai", _chat()),
    "Cline": ("openai", _chat(null=False)),
    "pi": ("openai", _chat(developer=True)),
    "Open WebUI": ("ollama", _ollama()),
}
