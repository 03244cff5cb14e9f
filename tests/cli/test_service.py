"""``plimsoll service`` with managers that only write down what they are told, and files that the real ones accept."""

import configparser
import os
import plistlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from plimsoll.cli import service as commands
from plimsoll.cli.service_files import LABEL, UNIT, Service, launchd_plist, stop_seconds, systemd_unit
from plimsoll.cli.service_managers import Launchd, Ran, ServiceFailed, Systemd, run

ROOT = Path(__file__).parent.parent.parent
ODD = Path("/opt/a b/100%/q'u\"o$te/back\\slash")


def service(**changes: Any) -> Service:
    plain: dict[str, Any] = {
        "python": Path(sys.executable),
        "config": Path("/etc/plimsoll.yaml"),
        "errors": Path("/nowhere/plimsoll.stderr.log"),
        "stop_s": 55,
    }
    return Service(**plain | changes)


class FakeSystemd:
    """``systemctl --user`` with one unit."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.active = self.enabled = False
        self.refuses = ""

    def __call__(self, command: Sequence[str]) -> Ran:
        assert command[:2] == ("systemctl", "--user")
        verb = command[2]
        if verb == "show":
            state = f"ActiveState={'active' if self.active else 'inactive'}\nSubState=running\n"
            state += f"UnitFileState={'enabled' if self.enabled else ''}\nMainPID={7 if self.active else 0}\n"
            return Ran(0, state + "StatusText=normal, memory 42.1% of 16.0 GB = fine\n")
        self.told.append(" ".join(command[2:]))
        if self.refuses:
            return Ran(1, self.refuses)
        self.active = (self.active or verb in ("start", "restart")) and verb != "disable"
        self.enabled = (self.enabled or verb == "enable") and verb != "disable"
        return Ran(0, "")


class FakeLaunchd:
    """``launchctl`` with one job that takes a while to leave, as launchd's do."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.loaded = False
        self.leaves_after = 0
        self._looks = 0

    def __call__(self, command: Sequence[str]) -> Ran:
        assert command[0] == "launchctl"
        verb = command[1]
        if verb == "print":
            if self._looks:
                self._looks -= 1
                self.loaded = bool(self._looks)
            told = f"{command[2]} = {{\n\tstate = running\n\tpid = 7\n\tsub = {{\n\t\tstate = inside\n\t}}\n}}"
            return Ran(0, told) if self.loaded else Ran(113, "Could not find service")
        self.told.append(" ".join(command[1:]))
        if verb == "bootout":
            self._looks = self.leaves_after
            self.loaded = bool(self.leaves_after)
        if verb == "bootstrap":
            if self.loaded:
                return Ran(5, "Bootstrap failed: 5: Input/output error")
            self.loaded = True
        return Ran(0, "")


# ---- systemd


def test_a_unit_is_written_enabled_and_started_once(tmp_path: Path) -> None:
    fake = FakeSystemd()
    manager = Systemd(tmp_path, fake)
    assert manager.install(service())
    assert manager.path == tmp_path / "systemd" / "user" / UNIT
    assert manager.path.read_text() == systemd_unit(service())
    assert fake.told == ["daemon-reload", f"enable {UNIT}", f"start {UNIT}"]
    assert not manager.install(service())
    assert len(fake.told) == 3
    found = manager.status(service())
    assert (found.installed, found.current, found.running, found.pid) == (True, True, True, 7)
    assert found.state == "normal, memory 42.1% of 16.0 GB = fine, active, running, enabled"


def test_another_configuration_restarts_the_unit_and_a_stopped_one_is_started(tmp_path: Path) -> None:
    fake = FakeSystemd()
    manager = Systemd(tmp_path, fake)
    manager.install(service())
    assert not manager.status(service(stop_s=99)).current
    assert manager.install(service(stop_s=99))
    assert fake.told[-1] == f"restart {UNIT}"
    fake.active = False
    assert manager.install(service(stop_s=99))
    assert fake.told[-1] == f"start {UNIT}"


def test_uninstall_stops_the_unit_and_removes_it(tmp_path: Path) -> None:
    fake = FakeSystemd()
    manager = Systemd(tmp_path, fake)
    assert not manager.uninstall()
    manager.install(service())
    assert manager.uninstall()
    assert fake.told[-2:] == [f"disable --now {UNIT}", "daemon-reload"]
    assert not manager.path.exists()
    assert not manager.status(service()).running


def test_a_manager_that_refuses_is_quoted(tmp_path: Path) -> None:
    fake = FakeSystemd()
    fake.refuses = "Failed to connect to bus"
    with pytest.raises(ServiceFailed, match=r"systemctl --user daemon-reload failed \(1\): Failed to connect to bus"):
        Systemd(tmp_path, fake).install(service())


def test_a_manager_that_is_not_there_is_said_to_be_missing() -> None:
    with pytest.raises(ServiceFailed, match="no-such-command is not there"):
        run(["no-such-command"])
    assert run([sys.executable, "-c", "print('x'); raise SystemExit(3)"]) == Ran(3, "x")


# ---- launchd


def test_an_agent_is_written_and_loaded_once(tmp_path: Path) -> None:
    fake = FakeLaunchd()
    manager = Launchd(tmp_path, 501, fake)
    mine = service(errors=tmp_path / "Library" / "Logs" / "plimsoll" / "plimsoll.stderr.log")
    assert manager.install(mine)
    assert plistlib.loads(manager.path.read_bytes())["Label"] == LABEL
    assert fake.told == [f"enable gui/501/{LABEL}", f"bootstrap gui/501 {manager.path}"]
    assert mine.errors.parent.is_dir(), "launchd makes no folders"
    assert not manager.install(mine)
    found = manager.status(mine)
    assert (found.installed, found.current, found.running, found.state, found.pid) == (True, True, True, "running", 7)


def test_a_changed_agent_is_loaded_again_only_when_the_old_one_has_left(tmp_path: Path) -> None:
    fake, waits = FakeLaunchd(), []
    manager = Launchd(tmp_path, 501, fake, waits.append)
    mine = service(errors=tmp_path / "stderr.log")
    manager.install(mine)
    fake.leaves_after = 4
    assert manager.install(service(errors=tmp_path / "stderr.log", stop_s=99))
    assert [line.split()[0] for line in fake.told[2:]] == ["bootout", "enable", "bootstrap"]
    assert len(waits) == 3
    assert manager.uninstall()
    assert not manager.path.exists()
    assert not fake.loaded


def test_an_agent_that_never_leaves_is_an_error(tmp_path: Path) -> None:
    fake = FakeLaunchd()
    manager = Launchd(tmp_path, 501, fake, lambda _s: None)
    manager.install(service(errors=tmp_path / "stderr.log"))
    fake.leaves_after = 10**6
    with pytest.raises(ServiceFailed, match="launchd still has"):
        manager.uninstall()
    assert manager.path.exists()


# ---- the files


def test_the_property_list_says_what_launchd_needs() -> None:
    wanted = plistlib.loads(launchd_plist(service(python=ODD / "python", config=None)))
    assert wanted["ProgramArguments"] == [str(ODD / "python"), "-P", "-m", "plimsoll", "serve"]
    assert wanted["ExitTimeOut"] == 55
    assert wanted["KeepAlive"] == {"SuccessfulExit": False}
    assert wanted["SoftResourceLimits"]["NumberOfFiles"] > 256, "launchd's default is too few for a server"


def test_the_unit_says_what_systemd_needs() -> None:
    parser = configparser.ConfigParser(strict=True, interpolation=None, delimiters="=")
    parser.optionxform = str  # type: ignore[assignment,method-assign] # keys are as they are written
    parser.read_string(systemd_unit(service()))
    unit = parser["Service"]
    assert unit["ExecStart"] == f"{sys.executable} -P -m plimsoll serve --config /etc/plimsoll.yaml"
    assert (unit["Type"], unit["KillMode"], unit["OOMPolicy"]) == ("notify", "mixed", "continue")
    assert unit["TimeoutStopSec"] == "55"
    assert parser["Install"]["WantedBy"] == "default.target"
    parser.read_string(systemd_unit(service(user="plimsoll")))
    assert (parser["Service"]["User"], parser["Install"]["WantedBy"]) == ("plimsoll", "multi-user.target")


def test_paths_with_odd_letters_are_quoted_for_systemd() -> None:
    line = next(line for line in systemd_unit(service(python=ODD / "python")).splitlines() if "ExecStart" in line)
    assert '"/opt/a b/100%%/q\'u\\"o$$te/back\\\\slash/python"' in line


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here; the parser above looks too")
@pytest.mark.parametrize("odd", [False, True])
def test_systemd_accepts_the_unit(tmp_path: Path, odd: bool) -> None:
    python = tmp_path / "a b" / "100%" / "python" if odd else Path(sys.executable)
    python.parent.mkdir(parents=True, exist_ok=True)
    if odd:
        python.symlink_to(sys.executable)
    file = tmp_path / UNIT
    file.write_text(systemd_unit(service(python=python)))
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", "--man=no", str(file)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_stop_has_time_for_the_answers_and_for_workers_that_ignore_everything(tmp_path: Path) -> None:
    from plimsoll.actors.system import STOP_MARGIN_S

    assert stop_seconds(30, STOP_MARGIN_S) >= 30 + STOP_MARGIN_S
    file = tmp_path / "config.yaml"
    file.write_text("server: {shutdown_grace: 90.5s}\nlogging: {file: none}\n")
    found = commands.describe(file)
    assert found.stop_s == stop_seconds(90.5, STOP_MARGIN_S) > 90.5 + STOP_MARGIN_S
    assert found.command[0] == sys.executable
    assert found.config == file
    assert found.errors.is_absolute()


@pytest.mark.parametrize(
    ("path", "made"),
    [
        (
            "ops/systemd/plimsoll.service",
            systemd_unit(
                Service(
                    python=Path("/opt/plimsoll/bin/python"),
                    config=Path("/etc/plimsoll.yaml"),
                    errors=Path(),
                    stop_s=55,
                    user="plimsoll",
                )
            ).encode(),
        ),
        (
            f"ops/launchd/{LABEL}.plist",
            launchd_plist(
                Service(
                    python=Path("/Users/YOU/plimsoll/.venv/bin/python"),
                    config=Path("/Users/YOU/.config/plimsoll/config.yaml"),
                    errors=Path("/Users/YOU/Library/Logs/plimsoll/plimsoll.stderr.log"),
                    stop_s=55,
                )
            ),
        ),
    ],
)
def test_the_files_to_copy_are_the_ones_that_install_writes(path: str, made: bytes) -> None:
    assert (ROOT / path).read_bytes() == made


# ---- the commands


def test_dry_run_prints_the_file_and_writes_nothing(plimsoll: Any, tmp_path: Path) -> None:
    done = plimsoll("service", "install", "--dry-run", XDG_CONFIG_HOME=str(tmp_path))
    assert done.returncode == 0
    assert "-m plimsoll serve" in done.stdout.replace("</string>\n\t\t<string>", " ")
    assert str(tmp_path) in done.stdout or sys.platform == "darwin"
    assert not list(tmp_path.rglob("*.service"))


def test_nothing_installed_is_said_and_is_not_running(plimsoll: Any, tmp_path: Path) -> None:
    done = plimsoll("service", "uninstall", XDG_CONFIG_HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "nothing is installed\n")
