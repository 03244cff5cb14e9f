"""launchd and systemd: install, uninstall and ask, by their own commands."""

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from plimsoll.cli.service_files import LABEL, UNIT, Service, launchd_plist, systemd_unit
from plimsoll.errors import PlimsollError

_COMMAND_S = 60.0
_POLL_S = 0.2


class ServiceFailed(PlimsollError):
    """The service manager refused, or is not there."""

    code = "service_failed"


class Ran(msgspec.Struct, frozen=True):
    """How a command ended, and what it said on both its outputs."""

    code: int
    output: str


Run = Callable[[Sequence[str]], Ran]
"""Runs a command to its end. Raises ``ServiceFailed`` when there is no such command."""


class Installed(msgspec.Struct, frozen=True):
    """``state`` is the manager's word; ``current``: the file there is the one that would be written now."""

    path: str
    installed: bool
    current: bool
    running: bool
    state: str
    pid: int | None


class Manager(Protocol):
    path: Path

    def text(self, service: Service) -> bytes:
        """The file that describes the service."""

    def install(self, service: Service) -> bool:
        """Write it and start it; False when nothing was to be done. Raises ``ServiceFailed``."""

    def uninstall(self) -> bool:
        """Stop it and remove it; False when it was not there. Raises ``ServiceFailed``."""

    def status(self, service: Service) -> Installed: ...


def run(command: Sequence[str]) -> Ran:
    """``Run`` for real."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_S, check=False)  # noqa: S603
    except FileNotFoundError:
        raise ServiceFailed(f"{command[0]} is not there; run plimsoll serve by what starts services here") from None
    except subprocess.TimeoutExpired:
        raise ServiceFailed(f"{' '.join(command)} did not end within {_COMMAND_S:g} s") from None
    return Ran(done.returncode, (done.stdout + done.stderr).strip())


def must(run_: Run, *command: str) -> str:
    """The output. Raises ``ServiceFailed`` with it when the command fails."""
    ran = run_(command)
    if ran.code:
        raise ServiceFailed(f"{' '.join(command)} failed ({ran.code}): {ran.output or 'without a word'}")
    return ran.output


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    # The managers run as the user too, and want to read it whatever the umask was.
    path.chmod(0o644)


def _is(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except OSError:
        return False


class Systemd:
    """The user's own systemd."""

    def __init__(self, folder: Path, run_: Run = run) -> None:
        """``folder`` is ``~/.config`` or what ``$XDG_CONFIG_HOME`` says."""
        self.path = folder / "systemd" / "user" / UNIT
        self._run = run_

    def text(self, service: Service) -> bytes:
        return systemd_unit(service).encode()

    def install(self, service: Service) -> bool:
        text, before = self.text(service), self.status(service)
        if before.current and before.running and before.state.endswith("enabled"):
            return False
        if not before.current:
            _write(self.path, text)
        must(self._run, "systemctl", "--user", "daemon-reload")
        must(self._run, "systemctl", "--user", "enable", UNIT)
        # One that runs with an older file has to take the new one.
        must(self._run, "systemctl", "--user", "restart" if before.running and not before.current else "start", UNIT)
        return True

    def uninstall(self) -> bool:
        if not self.path.exists():
            return False
        must(self._run, "systemctl", "--user", "disable", "--now", UNIT)
        self.path.unlink()
        must(self._run, "systemctl", "--user", "daemon-reload")
        return True

    def status(self, service: Service) -> Installed:
        keys = ("ActiveState", "SubState", "UnitFileState", "MainPID", "StatusText")
        ran = self._run(("systemctl", "--user", "show", UNIT, f"--property={','.join(keys)}"))
        told = dict(line.partition("=")[::2] for line in ran.output.splitlines()) if ran.code == 0 else {}
        words = (told.get(key, "") for key in ("StatusText", "ActiveState", "SubState", "UnitFileState"))
        pid = told.get("MainPID", "0")
        return Installed(
            path=str(self.path),
            installed=self.path.exists(),
            current=_is(self.path, self.text(service)),
            running=told.get("ActiveState") in ("active", "reloading"),
            state=", ".join(word for word in words if word) or ran.output,
            pid=int(pid) if pid.isdigit() and pid != "0" else None,
        )


class Launchd:
    """The launchd domain of a user's session."""

    def __init__(self, home: Path, uid: int, run_: Run = run, sleep: Callable[[float], Any] = time.sleep) -> None:
        self.path = home / "Library" / "LaunchAgents" / f"{LABEL}.plist"
        self._domain = f"gui/{uid}"
        self._run = run_
        self._sleep = sleep

    def text(self, service: Service) -> bytes:
        return launchd_plist(service)

    def install(self, service: Service) -> bool:
        before = self.status(service)
        if before.current and before.running:
            return False
        service.errors.parent.mkdir(parents=True, exist_ok=True)
        self._leave(service.stop_s)
        if not before.current:
            _write(self.path, self.text(service))
        must(self._run, "launchctl", "enable", f"{self._domain}/{LABEL}")
        must(self._run, "launchctl", "bootstrap", self._domain, str(self.path))
        return True

    def uninstall(self) -> bool:
        if not self.path.exists():
            return False
        self._leave(_COMMAND_S)
        self.path.unlink()
        return True

    def status(self, service: Service) -> Installed:
        ran = self._print()
        told = {
            name.strip(): value.strip()
            for line in reversed(ran.output.splitlines())  # the job's own lines come before those of its parts
            for name, separator, value in [line.partition(" = ")]
            if separator
        }
        loaded = ran.code == 0
        pid = told.get("pid", "") if loaded else ""
        return Installed(
            path=str(self.path),
            installed=self.path.exists(),
            current=_is(self.path, self.text(service)),
            running=loaded and told.get("state") == "running",
            state=told.get("state", "loaded") if loaded else "not loaded",
            pid=int(pid) if pid.isdigit() else None,
        )

    def _print(self) -> Ran:
        return self._run(("launchctl", "print", f"{self._domain}/{LABEL}"))

    def _leave(self, within_s: float) -> None:
        """Unload a job that is loaded, and wait: while it still ends, launchd refuses to load it again."""
        if self._print().code:
            return
        self._run(("launchctl", "bootout", f"{self._domain}/{LABEL}"))
        for _ in range(round(within_s / _POLL_S)):
            if self._print().code:
                return
            self._sleep(_POLL_S)
        job = f"{self._domain}/{LABEL}"
        raise ServiceFailed(f"launchd still has {LABEL} after {within_s:g} s; see launchctl print {job}")
