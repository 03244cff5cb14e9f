"""``plimsoll doctor``: the configuration, its models, its places, its port and its server; the machine is elsewhere."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil

from plimsoll import __version__, config
from plimsoll.actors.system import ActorSystem
from plimsoll.catalog import Catalog, default_cache_dir, installed
from plimsoll.cli import sense
from plimsoll.cli.client import Unauthorised, Unreachable
from plimsoll.cli.findings import OK, PROBLEM, WARNING, Finding, count, print_report
from plimsoll.cli.link import Link, default_url
from plimsoll.cli.machine import examine_machine
from plimsoll.cli.pull import existing
from plimsoll.config import Config
from plimsoll.errors import ConfigError, PlimsollError
from plimsoll.journal.lines import size
from plimsoll.journal.places import blackbox_file, log_file

__all__ = ["OK", "PROBLEM", "WARNING", "count", "examine", "print_report"]

_PROBE_S = 5.0


def examine(link: Link) -> list[Finding]:
    """Look at everything; nothing is changed."""
    findings: list[Finding] = []
    effective, catalog = _configuration(link, findings)
    findings += examine_machine(effective)
    if catalog:
        findings += _models(effective, catalog)
    findings += _places(effective)
    findings += _server(link, effective)
    return findings


def _configuration(link: Link, findings: list[Finding]) -> tuple[Config, Catalog | None]:
    """What can be used of it; where it is wrong, the defaults stand in for the rest of the examination."""
    path = config.find_user_file(link.file)
    try:
        effective = link.config
        catalog = Catalog(effective.models)
        sense.refuse_nonsense(effective)
    except ConfigError as error:
        findings.append(Finding(PROBLEM, "configuration", error.message, "mend it; plimsoll check says if it is right"))
        return config.parse({}), None
    findings.append(Finding(OK, "configuration", str(path) if path else "the defaults; there is no file"))
    return effective, catalog


def _models(effective: Config, catalog: Catalog) -> Iterator[Finding]:
    """Those that can never be loaded, each; the others in one line."""
    budget, system = sense.budget_bytes(effective), ActorSystem(effective, catalog)
    ready: list[str] = []
    absent: list[str] = []
    for name in catalog.names():
        model = catalog.find(name)
        try:
            ways = system.ways_to_load(model)
        except (OSError, ValueError) as error:
            yield Finding(PROBLEM, "model", f"{name}: {error}", f"mend models.entries.{name}.source or switch it off")
            continue
        least = min((way.total_bytes for way in ways), default=0)
        if least > budget:
            key = sense.budget_key(effective)
            text = f"{name} needs {size(least)} and can never be loaded: {key} allows {size(budget)}"
            yield Finding(PROBLEM, "model", text, "switch it off, or take a smaller or more strongly quantised one")
        else:
            (ready if installed(model.source, default_cache_dir(effective)) else absent).append(name)
    if not ready and not absent:
        yield Finding(WARNING, "models", "none can be served", "add one to models.entries, or set models.builtin")
    if ready:
        yield Finding(OK, "models", f"{len(ready)} ready to be loaded: {', '.join(ready)}")
    if absent:
        text = f"{len(absent)} fetched at the first use, or by plimsoll pull: {', '.join(absent)}"
        yield Finding(OK, "models", text)


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
        who = _listener(port)
        text = f"{host}:{port} can't be had: {f'{who} listens there' if who else error.strerror}"
        return Finding(PROBLEM, "port", text, "stop what listens there, or change server.port")
    return Finding(OK, "port", f"{host}:{port} is free; no server is running (plimsoll serve starts one)")


def _listener(port: int) -> str:
    """Who listens on the port, as far as this user may know."""
    try:
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.pid and one.laddr and one.laddr[1] == port:
                return f"{psutil.Process(one.pid).name()} (pid {one.pid})"
    except (psutil.Error, OSError):
        return ""
    return ""
