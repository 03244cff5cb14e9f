"""How each coding agent is told of this server: by variables and options for one start, or in its own file."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

# An answer that an agent waits for may be as long as this; the prompt needs the rest of the context.
_MOST_ANSWER_TOKENS = 32_000
_ANSWER_SHARE = 4


class Server(NamedTuple):
    """The server, a key (``none`` where it wants none), the model, and the model's context in tokens."""

    url: str
    key: str
    model: str
    context: int | None

    @property
    def openai(self) -> str:
        """The base URL of clients that speak OpenAI's API."""
        return f"{self.url.rstrip('/')}/v1"

    @property
    def answer(self) -> int:
        """How many tokens of the context an answer may take."""
        return min(_MOST_ANSWER_TOKENS, self.context // _ANSWER_SHARE) if self.context else _MOST_ANSWER_TOKENS


class Start(NamedTuple):
    """Variables and options of one start, and the client's ``file`` with what it would hold: an object, or TOML."""

    environment: dict[str, str]
    options: list[str]
    file: Path
    content: dict[str, Any] | str
    then: str
    """How the client is started once the file says it all."""
    own_file: Path | None = None
    """A file that a start needs beside the client's own: it gets the ``content``, too."""


class Launchable(NamedTuple):
    """One client: the ``program`` that is started, how to ``install`` it, and the start for a server."""

    name: str
    title: str
    program: str
    install: str
    start: Callable[[Server], Start]


def _claude(server: Server) -> Start:
    environment = {
        "ANTHROPIC_BASE_URL": server.url,
        "ANTHROPIC_AUTH_TOKEN": server.key,
        "ANTHROPIC_MODEL": server.model,
        "ANTHROPIC_DEFAULT_OPUS_MODEL": server.model,
        "ANTHROPIC_DEFAULT_SONNET_MODEL": server.model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": server.model,
        "CLAUDE_CODE_SUBAGENT_MODEL": server.model,
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(server.answer),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        # Tools that are needed later stay out of the prompt until then.
        "ENABLE_TOOL_SEARCH": "true",
        "API_TIMEOUT_MS": "3600000",
    }
    if server.context:
        environment["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] = str(server.context)
        environment["CLAUDE_CODE_AUTO_COMPACT_WINDOW"] = str(server.context)
    file = Path.home() / ".claude" / "settings.json"
    return Start(environment, [], file, {"env": environment}, "claude")


def _codex(server: Server) -> Start:
    provider = {
        "name": "Plimsoll",
        "base_url": server.openai,
        "wire_api": "responses",
        "env_key": "PLIMSOLL_API_KEY",
        "stream_idle_timeout_ms": 3_600_000,
    }
    profile: dict[str, Any] = {"model_provider": "plimsoll", "model": server.model}
    if server.context:
        profile["model_context_window"] = server.context
    settings = {**profile, **{f"model_providers.plimsoll.{key}": value for key, value in provider.items()}}
    options = [text for key, value in settings.items() for text in ("-c", f"{key}={json.dumps(value)}")]
    tables = {"profiles.plimsoll": profile, "model_providers.plimsoll": provider}
    content = "".join(f"\n[{name}]\n{_toml(table)}" for name, table in tables.items())
    file = Path.home() / ".codex" / "config.toml"
    then = "PLIMSOLL_API_KEY=none codex --profile plimsoll"
    return Start({"PLIMSOLL_API_KEY": server.key}, options, file, content, then)


def _opencode(server: Server) -> Start:
    limit = {"limit": {"context": server.context, "output": server.answer}} if server.context else {}
    config = {
        "provider": {
            "plimsoll": {
                "npm": "@ai-sdk/openai-compatible",
                "name": "Plimsoll",
                "options": {"baseURL": server.openai, "apiKey": server.key},
                "models": {server.model: {"name": server.model, **limit}},
            }
        },
        "model": f"plimsoll/{server.model}",
        "small_model": f"plimsoll/{server.model}",
    }
    file = Path.home() / ".config" / "opencode" / "opencode.json"
    return Start({"OPENCODE_CONFIG_CONTENT": json.dumps(config)}, [], file, config, "opencode")


def _qwen(server: Server) -> Start:
    environment = {"OPENAI_BASE_URL": server.openai, "OPENAI_API_KEY": server.key, "OPENAI_MODEL": server.model}
    limit = {"generationConfig": {"contextWindowSize": server.context}} if server.context else {}
    model = {"id": server.model, "name": server.model, "baseUrl": server.openai, "envKey": "OPENAI_API_KEY", **limit}
    content = {
        "env": {"OPENAI_API_KEY": server.key},
        "modelProviders": {"openai": [model]},
        "security": {"auth": {"selectedType": "openai"}},
        "model": {"name": server.model},
    }
    options = ["--auth-type", "openai", "--model", server.model]
    return Start(environment, options, Path.home() / ".qwen" / "settings.json", content, "qwen")


def _cline(server: Server) -> Start:
    """Cline takes the base URL from a file alone, so a start has a folder of its own, with its own sessions."""
    name = "openai-compatible"
    settings = {"provider": name, "apiKey": server.key, "model": server.model, "baseUrl": server.openai}
    # Without a time, in this form, Cline takes the file for broken and writes its own.
    at = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}.000Z"
    provider = {"settings": settings, "updatedAt": at, "tokenSource": "manual"}
    content = {"version": 1, "lastUsedProvider": name, "providers": {name: provider}}
    home, file = Path.home() / ".cline", Path("settings", "providers.json")
    own = home / "plimsoll"
    return Start({}, ["--data-dir", str(own)], home / "data" / file, content, "cline", own / file)


def _aider(server: Server) -> Start:
    environment = {"OPENAI_API_BASE": server.openai, "OPENAI_API_KEY": server.key}
    content = f"model: openai/{server.model}\nopenai-api-base: {server.openai}\nopenai-api-key: {server.key}\n"
    return Start(environment, ["--model", f"openai/{server.model}"], Path.home() / ".aider.conf.yml", content, "aider")


CLIENTS = (
    Launchable("claude", "Claude Code", "claude", "npm install -g @anthropic-ai/claude-code", _claude),
    Launchable("codex", "Codex", "codex", "npm install -g @openai/codex", _codex),
    Launchable("opencode", "opencode", "opencode", "npm install -g opencode-ai", _opencode),
    Launchable("qwen", "Qwen Code", "qwen", "npm install -g @qwen-code/qwen-code", _qwen),
    Launchable("cline", "Cline", "cline", "npm install -g cline", _cline),
    Launchable("aider", "aider", "aider", "pipx install aider-chat", _aider),
)


def _toml(table: dict[str, Any]) -> str:
    # Texts and whole numbers look the same in TOML as in JSON.
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
