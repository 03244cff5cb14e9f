"""``plimsoll doctor``: configuration, models, places, port and server; ``machine_checks`` looks at the machine."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from plimsoll import __version__, config
from plimsoll.catalog.disk import DISK, DiskSilent
from plimsoll.catalog.entries import CatalogModel
from plimsoll.catalog.installed import default_cache_dir, installed, place
from plimsoll.catalog.names import Catalog
from plimsoll.catalog.source import BUILTIN
from plimsoll.cli import config_checks
from plimsoll.cli.client import Unauthorised, Unreachable
from plimsoll.cli.deep_checks import Effort, examine_deeply
from plimsoll.cli.link import AsJson, Link, default_url, with_link
from plimsoll.cli.machine_checks import OK, PROBLEM, WARNING, Finding, count, examine_machine, existing, print_report
from plimsoll.cli.output import NO, print_json
from plimsoll.config import Config
from plimsoll.errors import ConfigError, PlimsollError
from plimsoll.journal.lines import size
from plimsoll.journal.store import blackbox_file, log_file

_PROBE_S = 5.0


Deep = Annotated[bool, typer.Option("--deep", help="Run a model, too, beside mlx-lm alone: 10 minutes at most.")]
Model = Annotated[str, typer.Option("--model", help="Which model --deep runs.", metavar="NAME")]
Quick = Annotated[bool, typer.Option("--quick", help="With --deep: short answers, and two at once at most.")]


@with_link
def doctor(
    link: Link, *, deep: Deep = False, model: Model = BUILTIN.name, quick: Quick = False, as_json: AsJson = False
) -> None:
    """Say what is wrong with machine, configuration and models; exit code 1 if there is a problem."""
    findings = examine(link)
    more: dict[str, Any] = {}
    if deep:
        report = examine_deeply(link.config, model, Effort((1, 2), 8) if quick else Effort())
        findings += report.findings
        more = {"versions": report.versions, "figures": report.figures, "seconds": report.seconds}
    if as_json:
        print_json({"problems": count(findings, PROBLEM), "findings": [one.as_json() for one in findings], **more})
    else:
        if deep:
            typer.echo(", ".join(f"{name} {version}" for name, version in more["versions"].items()) + "\n")
        print_report(findings)
    if count(findings, PROBLEM):
        raise typer.Exit(NO)


def examine(link: Link) -> list[Finding]:
    """Look at everything; nothing is changed."""
    findings: list[Finding] = []
    effective, catalog = _configuration(link, findings)
    findings += examine_machine(effective)
    if catalog:
        findings += _models(effective, catalog)
        findings += _base_models(effective, catalog)
    findings += _places(effective)
    findings += _server(link, effective)
    return findings


def _configuration(link: Link, findings: list[Finding]) -> tuple[Config, Catalog | None]:
    """The configuration and its catalog; where it is wrong, the defaults and no catalog."""
    path = config.find_user_file(link.file)
    try:
        effective = link.config
        catalog = Catalog(effective.models)
        config_checks.refuse_nonsense(effective)
    except ConfigError as error:
        findings.append(Finding(PROBLEM, "configuration", error.message, "mend it; plimsoll check says if it is right"))
        return config.parse({}), None
    findings.append(Finding(OK, "configuration", str(path) if path else "the defaults; there is no file"))
    return effective, catalog


def _models(effective: Config, catalog: Catalog) -> Iterator[Finding]:
    """A finding for each model that can never be loaded; the others share a line."""
    budget, cache_dir = config_checks.budget_bytes(effective), default_cache_dir(effective)
    ready: list[str] = []
    absent: list[str] = []
    for name, ways in config_checks.weighed(effective, catalog):
        if isinstance(ways, Exception):
            if name in catalog.config.entries:
                hint = f"mend models.entries.{name}.source or switch it off"
                yield Finding(PROBLEM, "model", f"{name}: {ways}", hint)
            else:
                yield Finding(WARNING, "model", f"{name}: {ways}", "fetch it again, or remove it")
            continue
        model = catalog.find(name)
        least = min((way.total_bytes for way in ways), default=0)
        if least > budget:
            key = config_checks.budget_key(effective)
            text = f"{name} needs {size(least)} and can never be loaded: {key} allows {size(budget)}"
            hint = "take a smaller or more strongly quantised one"
            if name in catalog.config.entries:
                yield Finding(PROBLEM, "model", text, f"switch it off, or {hint}")
            else:
                yield Finding(WARNING, "model", text, hint)
        else:
            (ready if _is_here(model, cache_dir) else absent).append(name)
    for path, reason in catalog.passed_over():
        yield Finding(WARNING, "passed over", f"{path}: {reason}")
    if not ready and not absent:
        yield Finding(WARNING, "models", "none can be served", "add one to models.entries, or set models.builtin")
    if ready:
        yield Finding(OK, "models", f"{len(ready)} ready to be loaded: {', '.join(ready)}")
    if absent:
        text = f"{len(absent)} fetched at the first use, or by plimsoll pull: {', '.join(absent)}"
        yield Finding(OK, "models", text)


def _base_models(effective: Config, catalog: Catalog) -> Iterator[Finding]:
    """A finding for each model that has no chat template."""
    for name, known in config_checks.facts_of(effective, catalog).items():
        if known.is_base:
            text = f"{name} has no chat template: it is a base model, which goes on with a text and answers nobody"
            hint = "name a template file with chat_template, or take the model's chat version"
            yield Finding(WARNING, "model", text, hint)


def _is_here(model: CatalogModel, cache_dir: Path) -> bool:
    source = model.source
    try:
        return DISK.answer(place(source, cache_dir), lambda: installed(source, cache_dir), _PROBE_S)
    except DiskSilent:
        return False


def _places(effective: Config) -> Iterator[Finding]:
    """Where the server writes."""
    places = {
        ("log", "logging.file"): log_file(effective.logging.file),
        ("black box", "logging.blackbox"): blackbox_file(effective.logging.blackbox),
    }
    for (subject, key), path in places.items():
        if path is None:
            yield Finding(OK, subject, f"switched off by {key}")
        elif _writable(path):
            yield Finding(OK, subject, str(path))
        else:
            yield Finding(WARNING, subject, f"{path} can't be written", f"make its folder writable or change {key}")


def _writable(path: Path) -> bool:
    nearest = existing(path)
    return os.access(nearest, os.W_OK if nearest == path and path.is_file() else os.W_OK | os.X_OK)


def _server(link: Link, effective: Config) -> Iterator[Finding]:
    """The server if it answers, else whether it could be started."""
    # Not the link's own URL: where the configuration is wrong, the defaults stand in for it.
    url = link.named_url or default_url(effective)
    try:
        client = link.client_at(url)
        # Closed to those without a key, so it says more than that somebody is there.
        client.get("/admin/models", timeout_s=_PROBE_S)
        health = client.get("/health?cleanup=no", timeout_s=_PROBE_S)
    except Unauthorised as error:
        yield Finding(WARNING, "server", f"{url} answers, but not to this key: {error.message}")
    except Unreachable as error:
        if link.named_url:
            yield Finding(PROBLEM, "server", error.message, "start it there, or mend --url or $PLIMSOLL_URL")
        else:
            yield _port(effective)
    except PlimsollError as error:
        yield Finding(PROBLEM, "server", f"{url}: {error.message}")
    else:
        yield from _health(url, health)


def _health(url: str, health: dict[str, object]) -> Iterator[Finding]:
    status, its_version = str(health["status"]), str(health["version"])
    level = OK if status == "healthy" else PROBLEM if status == "critical" else WARNING
    yield Finding(
        level, "server", f"{url} answers: {status}, version {its_version}", "see plimsoll top" * (level != OK)
    )
    for problem in health["problems"] if isinstance(health["problems"], list) else []:
        yield Finding(WARNING, "server", str(problem))
    if its_version != __version__:
        text = f"it runs version {its_version}, this command is {__version__}"
        yield Finding(WARNING, "server", text, "restart it to run the version that is installed")


def _port(effective: Config) -> Finding:
    host, port = effective.server.host, effective.server.port
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
    except OSError as error:
        who = listener(port)
        text = f"{host}:{port} can't be had: {f'{who} listens there' if who else error.strerror}"
        return Finding(PROBLEM, "port", text, "stop what listens there, or change server.port")
    return Finding(OK, "port", f"{host}:{port} is free; no server is running (plimsoll serve starts one)")


def listener(port: int) -> str:
    """Who listens on the port, as far as this user may know; empty where that can't be seen."""
    try:
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.pid and one.laddr and one.laddr[1] == port:
                return f"{psutil.Process(one.pid).name()} (pid {one.pid})"
    except (psutil.Error, OSError):
        return ""
    return ""
