"""The client's own shell as a tool of a response: the function that the model is offered, and its calls."""

from typing import Any

import msgspec

from plimsoll.engine.protocol import Tool

# The tool's type, and the name by which the model calls it.
SHELL = "local_shell"
_ABOUT = "Runs a command on the user's machine and gives its output."
_PARAMETERS = {
    "type": "object",
    "properties": {
        "command": {
            "type": "array",
            "items": {"type": "string"},
            "description": 'The program and its arguments, like ["bash", "-lc", "ls"].',
        },
        "working_directory": {"type": "string", "description": "Where it runs; the client's own folder by default."},
        "timeout_ms": {"type": "integer", "description": "After how many milliseconds it is stopped."},
    },
    "required": ["command"],
}


def shell_tool() -> Tool:
    """The shell as a function that takes a command."""
    return Tool(SHELL, _ABOUT, _PARAMETERS)


class ShellAction(msgspec.Struct, omit_defaults=True):
    """The command of a shell call, as lists of arguments; the client runs it."""

    command: list[str] | str = []
    env: dict[str, str] | None = None
    timeout_ms: int | None = None
    working_directory: str | None = None
    user: str | None = None


_action = msgspec.json.Decoder(ShellAction)


def shell_action(arguments: str) -> dict[str, Any]:
    """The ``action`` of a shell call whose arguments the model wrote; what is no JSON is the command itself."""
    try:
        action = _action.decode(arguments or "{}")
    except (msgspec.MsgspecError, RecursionError):
        action = ShellAction([arguments])
    if isinstance(action.command, str):
        action.command = ["bash", "-lc", action.command]
    told: dict[str, Any] = msgspec.to_builtins(action)
    return {"type": "exec", "command": action.command, "env": {}} | told


def shell_arguments(action: Any) -> dict[str, Any]:
    """The arguments of a shell call in the conversation, as the model wrote them."""
    given = action if isinstance(action, dict) else {}
    return {key: given[key] for key in ShellAction.__struct_fields__ if given.get(key)}
