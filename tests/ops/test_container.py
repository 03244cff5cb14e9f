"""The Containerfile, as far as it can be looked at without an engine that builds it."""

import fnmatch
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plimsoll import config

ROOT = Path(__file__).parent.parent.parent
FILE = ROOT / "ops" / "container" / "Containerfile"
Stage = list[tuple[str, str]]


def stages() -> list[Stage]:
    """The instructions of each stage as (name, rest); none of them goes over a line's end."""
    found: list[Stage] = []
    for line in FILE.read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(" ")
        if name == "FROM":
            found.append([])
        found[-1].append((name, rest))
    return found


def last(name: str) -> str:
    return next(rest for found, rest in reversed(stages()[-1]) if found == name)


def test_every_instruction_is_one_and_every_shell_line_is_valid() -> None:
    known = {"FROM", "WORKDIR", "RUN", "COPY", "USER", "VOLUME", "ENV", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK"}
    for name, rest in (one for stage in stages() for one in stage):
        assert name in known | {"ENTRYPOINT", "CMD"}
        if name == "RUN":
            subprocess.run(["sh", "-n", "-c", rest], check=True)


def test_it_serves_as_a_user_without_rights_on_the_default_port() -> None:
    order = [name for name, _ in stages()[-1]]
    assert int(last("USER")) > 0
    assert order.index("USER") < order.index("ENTRYPOINT")
    assert int(last("EXPOSE")) == config.parse({}).server.port
    command = json.loads(last("ENTRYPOINT")) + json.loads(last("CMD"))
    assert command == ["plimsoll", "serve", "--host", "0.0.0.0"]  # as a container has to


def test_what_is_copied_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".containerignore").read_text().split()
    assert (ROOT / ".dockerignore").read_text().split() == ignored
    for name, rest in (one for stage in stages() for one in stage):
        if name != "COPY" or "--from" in rest:
            continue
        for source in rest.split()[:-1]:
            assert (ROOT / source).exists()
            assert not any(fnmatch.fnmatch(source, pattern) for pattern in ignored)
    needed = ["pyproject.toml", "README.md", "LICENSE", "config.yaml", "http", "ops", "requirements.txt"]
    assert not [name for name in needed if any(fnmatch.fnmatch(name, pattern) for pattern in ignored)]


def test_every_volume_belongs_to_the_user_before_it_becomes_one() -> None:
    made = next(rest for name, rest in stages()[-1] if name == "RUN").partition("-g plimsoll ")[2].split()
    assert json.loads(last("VOLUME")) == [
        f"/home/plimsoll/{name}" for name in made if name in (".cache", ".local/state")
    ]


def test_the_health_check_runs_the_probe_and_says_1_where_docker_wants_it(serve_process: Callable[..., Any]) -> None:
    command = last("HEALTHCHECK").partition(" CMD ")[2]
    assert "/opt/plimsoll/probe.py --live" in command
    command = command.replace("/opt/plimsoll/", f"{ROOT}/ops/").replace("python ", f"{sys.executable} ")
    server = serve_process()

    def check() -> int:
        environment = {**os.environ, "PLIMSOLL_URL": server.url}
        return subprocess.run(["sh", "-c", command], env=environment, capture_output=True, check=False).returncode

    assert check() == 0
    server.end()
    assert check() == 1
