"""What a service manager is told about Plimsoll: the systemd unit and the launchd property list, as text."""

import math
import plistlib
from pathlib import Path

import msgspec

LABEL = "local.plimsoll.server"
UNIT = "plimsoll.service"
_WATCHDOG_S = 30
# The first start fetches the built-in model before it serves.
_START_S = 900
_OPEN_FILES = 65536
# After the last worker has ended: last words, the black box, the log.
_LAST_WORDS_S = 5


class Service(msgspec.Struct, frozen=True):
    """One installation. ``stop_s`` is how long a stop may take; ``errors`` is where launchd sends stderr."""

    python: Path
    config: Path | None
    errors: Path
    stop_s: int
    user: str = ""

    @property
    def command(self) -> list[str]:
        # -P: no file of the folder it runs in may stand for a module.
        more = ["--config", str(self.config)] if self.config else []
        return [str(self.python), "-P", "-m", "plimsoll", "serve", *more]


def stop_seconds(shutdown_grace_s: float, stop_margin_s: float) -> int:
    """The time after which a service manager may kill: running answers, then workers that ignore everything."""
    return math.ceil(shutdown_grace_s + stop_margin_s) + _LAST_WORDS_S


def systemd_unit(service: Service) -> str:
    """The unit; for one user's own manager, or with ``user`` for the whole system's."""
    who = f"User={service.user}\n" if service.user else ""
    target = "multi-user.target" if service.user else "default.target"
    return f"""\
[Unit]
Description=Plimsoll, an MLX API server that does not run out of memory
StartLimitIntervalSec=300
StartLimitBurst=5

[Service]
Type=notify
{who}ExecStart={" ".join(_quoted(word) for word in service.command)}
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=2
# The first start fetches the built-in model.
TimeoutStartSec={_START_S}
# server.shutdown_grace, then what workers get to end; install again when that changes.
TimeoutStopSec={service.stop_s}
# SIGTERM is for the server alone: it lets answers finish and ends its workers itself.
KillMode=mixed
# Pings come only while the event loop and the supervisor answer.
WatchdogSec={_WATCHDOG_S}
# A worker that the kernel's OOM killer took costs one model, not the unit.
OOMPolicy=continue
LimitNOFILE={_OPEN_FILES}
# Plimsoll measures itself against MemoryMax, so that is all it needs. MemoryHigh throttles the whole unit, so where it
# is lower the levels go by it: leave it away.
#MemoryMax=24G

[Install]
WantedBy={target}
"""


def launchd_plist(service: Service) -> bytes:
    """The property list of a user's agent."""
    wanted = {
        "Label": LABEL,
        "ProgramArguments": service.command,
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 10,
        "ExitTimeOut": service.stop_s,
        # Without it launchd holds back the processor and the disk of what it runs.
        "ProcessType": "Interactive",
        "SoftResourceLimits": {"NumberOfFiles": _OPEN_FILES},
        "HardResourceLimits": {"NumberOfFiles": _OPEN_FILES},
        "Umask": 0o077,
        "StandardOutPath": "/dev/null",
        "StandardErrorPath": str(service.errors),
    }
    return plistlib.dumps(wanted, sort_keys=False)


def _quoted(word: str) -> str:
    """One word of ExecStart as systemd reads it back."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if any(letter in escaped for letter in " \t'\"\\;") else escaped
