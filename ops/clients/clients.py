"""Runs the clients that are installed here against a server of its own, and writes docs/clients.md of what worked.

python ops/clients/clients.py [--python PYTHON] [--node-modules FOLDER] [--only NAME ...] [--print]

The server has the fake engine, which repeats what it is asked and calls the tool that it is told to call. Each client
asks three things: a first message, one that needs a tool, and a second one. A client that is not installed keeps the
line that it had. Coding agents are started by ``plimsoll launch``, each with a home of its own.
"""

import argparse
import datetime as dt
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent.parent / "docs" / "clients.md"
MODEL = "ship"
FIRST, SECOND, THIRD = "hello ships", 'call weather {"city": "Oslo"}', "and again"
WANTED = ("hello ships", "sunny in Oslo", "and again")
STEPS = ("first message", "tool call and its result", "second message")
_LIMIT_S = 120
_TABLE = "| client | version | API | " + " | ".join(STEPS) + " | run on |\n|---|---|---|---|---|---|---|\n"


class Script(NamedTuple):
    """A client that is a package: the script beside this one, the package whose version counts, and one it needs."""

    title: str
    file: str
    package: str
    api: str
    needs: str = ""

    @property
    def is_python(self) -> bool:
        return self.file.endswith(".py")


class Agent(NamedTuple):
    """A coding agent: what ``plimsoll launch`` gets behind its name for each of the three messages.

    ``tool`` is the message by which the fake engine calls the agent's own shell; ``{}`` stands for a message. An agent
    that goes on with a session in its terminal alone has the pattern of its files of messages in ``sessions``: the
    second message is typed there, behind ``ready``, and ``{session}`` is the name of the file.
    """

    title: str
    name: str
    api: str
    ask: tuple[str, ...]
    again: tuple[str, ...]
    tool: str
    sessions: str = ""
    ready: str = ""


SCRIPTS = (
    Script("openai (Python)", "with_openai.py", "openai", "chat completions"),
    Script("openai (Python), responses", "with_responses.py", "openai", "responses"),
    Script("anthropic (Python)", "with_anthropic.py", "anthropic", "messages"),
    Script("ollama (Python)", "with_ollama.py", "ollama", "Ollama's chat"),
    Script("OpenAI Agents", "with_openai_agents.py", "openai-agents", "responses"),
    Script("Pydantic AI", "with_pydantic_ai.py", "pydantic-ai-slim", "chat completions"),
    Script("LangChain", "with_langchain.py", "langchain-openai", "chat completions"),
    Script("AI SDK", "with_ai_sdk.mjs", "ai", "chat completions", "@ai-sdk/openai-compatible"),
)
_ECHO = '{"command": "echo sunny in Oslo"}'
_EXEC = ("exec", "--skip-git-repo-check")
AGENTS = (
    Agent(
        "Claude Code",
        "claude",
        "messages",
        ("--allowedTools", "Bash", "-p", "{}"),
        ("-c", "-p", "{}"),
        f"call Bash {_ECHO}",
    ),
    Agent(
        "Codex",
        "codex",
        "responses",
        (*_EXEC, "{}"),
        (*_EXEC, "resume", "--last", "{}"),
        'call exec_command {"cmd": "echo sunny in Oslo"}',
    ),
    Agent(
        "opencode",
        "opencode",
        "chat completions",
        ("run", "{}"),
        ("run", "-c", "{}"),
        'call bash {"command": "echo sunny in Oslo", "description": "tells"}',
    ),
    Agent(
        "Qwen Code",
        "qwen",
        "chat completions",
        ("--yolo", "-p", "{}"),
        ("-c", "-p", "{}"),
        'call run_shell_command {"command": "echo sunny in Oslo", "is_background": false}',
    ),
    Agent(
        "Cline",
        "cline",
        "chat completions",
        ("{}",),
        ("--id", "{session}"),
        'call run_commands {"commands": ["echo sunny in Oslo"]}',
        ".cline/plimsoll/sessions/*/*.messages.json",
        "Ask anything",
    ),
)


class Programs(NamedTuple):
    """Which Python and which folder of Node's packages the clients are looked for in."""

    python: str
    modules: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the Python whose packages are tried")
    parser.add_argument("--node-modules", type=Path, default=Path("node_modules"), help="where npm has put its own")
    parser.add_argument("--only", nargs="*", default=(), help="titles, or the names of agents")
    parser.add_argument("--print", action="store_true", dest="printed", help="print the rows, write no page")
    options = parser.parse_args()
    programs = Programs(options.python, options.node_modules.resolve())
    chosen = [one for one in (*SCRIPTS, *AGENTS) if not options.only or {one.title, one[1]} & set(options.only)]
    rows = old_rows()
    with tempfile.TemporaryDirectory() as folder:
        server, url = serve(Path(folder))
        try:
            for one in chosen:
                row = tried(one, url, programs, Path(folder))
                print(row or f"{one.title} is not installed here", flush=True)
                rows |= {one.title: row} if row else {}
        finally:
            server.terminate()
            server.wait(30)
    if not options.printed:
        PAGE.write_text(page(rows), encoding="utf-8")
    sys.exit(1 if any("no" in row.split(" | ") for row in rows.values()) else 0)


def serve(folder: Path) -> tuple["subprocess.Popen[str]", str]:
    """A server with the fake engine, and its URL."""
    entry = {"source": "fake:context=200000"}
    settings = {
        "server": {"port": 0, "responses_folder": "none"},
        "models": {"builtin": False, "entries": {MODEL: entry}},
        "logging": {"file": str(folder / "log"), "blackbox": "none"},
    }
    file = folder / "plimsoll.yaml"
    file.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "plimsoll", "serve", "--config", str(file)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout
    found = re.search(r"http://[\d.]+:\d+", server.stdout.readline())
    assert found, "the server did not start"
    return server, found[0]


def tried(one: Script | Agent, url: str, programs: Programs, folder: Path) -> str:
    """The client's row of the table; empty where it is not installed."""
    version = version_of(one, programs)
    if not version:
        return ""
    said = run_script(one, url, programs, folder) if isinstance(one, Script) else run_agent(one, url, programs, folder)
    worked = ["yes" if wanted in text else "no" for wanted, text in zip(WANTED, said, strict=True)]
    today = dt.datetime.now(dt.UTC).date().isoformat()
    return f"| [{one.title}](#{anchor(one.title)}) | {version} | {one.api} | {' | '.join(worked)} | {today} |"


def version_of(one: Script | Agent, programs: Programs) -> str:
    """The version that is installed, else nothing."""
    if isinstance(one, Agent):
        program = programs.modules / ".bin" / one.name
        return number(output([str(program), "--version"])) if program.exists() else ""
    if one.is_python:
        return number(
            output([programs.python, "-c", f"from importlib.metadata import *; print(version({one.package!r}))"])
        )
    told = programs.modules / one.package / "package.json"
    is_here = told.exists() and (programs.modules / one.needs).exists() and shutil.which("node")
    return str(json.loads(told.read_text())["version"]) if is_here else ""


def number(text: str) -> str:
    found = re.search(r"\d+\.\d+[\w.]*", text)
    return found[0] if found else ""


def run_script(one: Script, url: str, programs: Programs, folder: Path) -> tuple[str, str, str]:
    """What the client printed for each message; nothing from where it failed."""
    script = HERE / one.file
    if not one.is_python:  # Node looks for packages beside the script
        (folder / "node_modules").unlink(missing_ok=True)
        (folder / "node_modules").symlink_to(programs.modules)
        script = Path(shutil.copy(script, folder))
    program = programs.python if one.is_python else "node"
    lines = [*output([program, str(script), url, MODEL, FIRST, SECOND, THIRD]).splitlines(), "", "", ""]
    return lines[0], lines[1], lines[2]


def run_agent(one: Agent, url: str, programs: Programs, folder: Path) -> tuple[str, str, str]:
    """What the agent printed for each message, started by ``plimsoll launch`` in a home and a folder of its own."""
    home = folder / one.name
    (home / "project").mkdir(parents=True)
    told = {"HOME": str(home), "PATH": f"{programs.modules / '.bin'}{os.pathsep}{os.environ['PATH']}"}
    launch = [sys.executable, "-m", "plimsoll", "launch", "--url", url, one.name, "--model", MODEL, "--"]

    def ask(options: tuple[str, ...], text: str) -> str:
        given = [option.format(text) if option == "{}" else option for option in options]
        return output([*launch, *given], told, home / "project") if options else ""

    first, tool = ask(one.ask, FIRST), ask(one.ask, one.tool)
    if not one.sessions:
        return first, tool, ask(one.again, THIRD)
    file = min(home.glob(one.sessions), default=None)  # of the first message
    if file is None:
        return first, tool, ""
    given = [option.format(session=file.name.partition(".")[0]) for option in one.again]
    return first, tool, typed([*launch, *given], one.ready, file, told, home / "project")


def typed(command: list[str], ready: str, file: Path, more: dict[str, str], folder: Path) -> str:
    """What the agent answers to the third message typed into its terminal, as its file of messages has it."""
    mine, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    agent = subprocess.Popen(
        command, stdin=its, stdout=its, stderr=its, env={**os.environ, **more}, cwd=folder, start_new_session=True
    )
    until, seen, keys = time.monotonic() + _LIMIT_S, b"", [(ready, THIRD), (THIRD, "\r")]
    try:
        while time.monotonic() < until and (keys or THIRD not in last_answer(file)):
            if select.select([mine], [], [], 0.2)[0]:
                seen += (new := os.read(mine, 1 << 16))
                if b"\x1b[6n" in new:  # it asks where the cursor is
                    os.write(mine, b"\x1b[1;1R")
            elif keys and keys[0][0].encode() in seen:  # and it draws no more
                os.write(mine, keys.pop(0)[1].encode())
                seen = b""
        return last_answer(file)
    except OSError:  # it has ended
        return ""
    finally:
        os.killpg(agent.pid, signal.SIGKILL)
        agent.wait()
        os.close(mine)
        os.close(its)


def last_answer(file: Path) -> str:
    """The last message of a session, as JSON, where it is the agent's."""
    try:
        told = json.loads(file.read_text())
    except ValueError:  # half written
        return ""
    last = (told if isinstance(told, list) else told["messages"])[-1]
    return json.dumps(last["content"]) if last["role"] == "assistant" else ""


def output(command: list[str], more: dict[str, str] | None = None, folder: Path | None = None) -> str:
    """What the command printed; nothing where it can't be started or takes too long."""
    environment = {**os.environ, "NO_COLOR": "1", **(more or {})}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            stdin=subprocess.DEVNULL,
            env=environment,
            cwd=folder,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def anchor(title: str) -> str:
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def old_rows() -> dict[str, str]:
    """The rows of the page as it is, by the client's title."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    return {found[1]: found[0] for found in re.finditer(r"^\| \[([^]]+)\]\(#.*$", text, re.MULTILINE)}


def page(rows: dict[str, str]) -> str:
    """The whole page: the table, then a section with a snippet for each client."""
    known: tuple[Script | Agent, ...] = (*SCRIPTS, *AGENTS)
    table = _TABLE + "\n".join(rows[one.title] for one in known if one.title in rows)
    return f"{_HEAD}\n{table}\n\n" + "\n".join(map(section, known))


def section(one: Script | Agent) -> str:
    if isinstance(one, Agent):
        told = (
            f"`plimsoll launch {one.name} --model NAME`; what it sets is in [agents.md](agents.md#{anchor(one.title)})."
        )
        return f"## {one.title}\n\n{told}\n"
    return f"## {one.title}\n\n{snippet(one)}\n"


def snippet(one: Script) -> str:
    kind = "python" if one.is_python else "js"
    install = f"pip install {one.package}" if one.is_python else "npm install ai @ai-sdk/openai-compatible zod"
    return f"`{install}`, then as in `ops/clients/{one.file}`:\n\n```{kind}\n{code(one)}```\n"


def code(one: Script) -> str:
    return (HERE / one.file).read_text(encoding="utf-8")


_HEAD = """# Clients

What was run against the server, as the version that is named, on the fake engine: a message, a message that needs a
tool with the tool's result, and a second message of the same conversation. `python ops/clients/clients.py` runs the
clients that are installed and writes this page; it is not written by hand. Each script takes the server's URL, a model
and three messages.
"""

if __name__ == "__main__":
    main()
