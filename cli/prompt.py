"""``plimsoll prompt``: what a model's chat template makes of a request, without loading the model."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from plimsoll import config
from plimsoll.catalog.files import local_folder
from plimsoll.catalog.installed import default_cache_dir
from plimsoll.catalog.names import Catalog
from plimsoll.cli.link import AsJson, ConfigFile
from plimsoll.cli.output import hint, print_json
from plimsoll.errors import BadRequest, LoadFailed

_PATIENCE_S = 120.0


def prompt(
    model: Annotated[str, typer.Argument(help="A model's name, or the folder of its files.")],
    api: Annotated[str, typer.Option(help="What the body is for: openai, responses, anthropic or ollama.")] = "openai",
    file: ConfigFile = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Print the prompt that a model gets for the request on stdin, and what was changed in it and why."""
    found = report(_folder(model, file), _request(api, sys.stdin.buffer.read()))
    if as_json:
        print_json(found)
        return
    typer.echo(found["prompt"])
    for change in found["changes"]:
        hint(f"changed: {change}")
    hint(f"{found['tokens']} tokens")


def report(folder: Path, request: bytes) -> dict[str, Any]:
    """The report of a process that reads the tokenizer. Raises ``BadRequest`` with what it said where it fails."""
    command = [sys.executable, "-m", "plimsoll.engine.prompt_report", str(folder)]
    done = subprocess.run(command, input=request, capture_output=True, timeout=_PATIENCE_S, check=False)  # noqa: S603 - ours
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise BadRequest(f"There is no prompt: {lines[-1]}", param="messages")
    answer: dict[str, Any] = msgspec.json.decode(done.stdout)
    return answer


def _folder(model: str, file: Path | None) -> Path:
    if Path(model).is_dir():
        return Path(model)
    effective = config.load(file)
    source = Catalog(effective.models).find(model).source
    folder = local_folder(source, default_cache_dir(effective))
    if folder is None:
        raise LoadFailed(f"The files of {model} are not here; fetch them with: plimsoll pull {model}")
    return folder


def _request(api: str, body: bytes) -> bytes:
    from plimsoll.http.bodies import chat_request  # noqa: PLC0415 - it loads the server's libraries

    given = msgspec.json.decode(body)
    if isinstance(given, dict):
        given.setdefault("model", "any")
    return msgspec.json.encode(chat_request(api, msgspec.json.encode(given)))
