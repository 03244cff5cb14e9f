"""What somebody does on the first day, in a new account: install, serve, pull, chat, set, restart, chat again.

    python ops/first_day.py [--keep FOLDER]

Builds the wheel, installs it by pip from the index that pip is configured with into an empty home, and plays the hub
with a model of random numbers. Prints what each step took; exit code 1 where one fails.
"""

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "cli")]

import hub  # noqa: E402 - it stands among the tests
import release  # noqa: E402 - beside this script
import tiny_llama  # noqa: E402 - as above


class Account:
    """An empty home with a virtual environment, and the commands that run there."""

    def __init__(self, home: Path, hub_url: str) -> None:
        self.home = home
        passed = ("PIP_", "UV_", "SSL_", "REQUESTS_")
        self.environment = {name: value for name, value in os.environ.items() if name.startswith(passed)}
        self.environment |= {"PATH": os.environ["PATH"], "HOME": str(home), "HF_ENDPOINT": hub_url}
        self.command = str(home / "venv" / "bin" / "plimsoll")

    def run(self, *command: str) -> str:
        """What a command prints. Ends this script with what it said where it fails."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, cwd=self.home)
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed: {(done.stderr or done.stdout)[-800:]}")
        return done.stdout

    def plimsoll(self, *arguments: str) -> str:
        return self.run(self.command, *arguments)

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """A server on a free port, which all commands talk to meanwhile."""
        command = [self.command, "serve", "--port", "0"]
        with subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, text=True, cwd=self.home) as child:
            assert child.stdout
            try:
                for line in child.stdout:
                    if found := re.search(r"http://[\d.]+:\d+", line):
                        self.environment["PLIMSOLL_URL"] = found[0]
                        break
                else:
                    sys.exit("the server ended before it said where it listens")
                yield
            finally:
                child.send_signal(signal.SIGTERM)
                child.wait(60)


def timed(what: str, work: Callable[[], Any]) -> Any:
    """The result of ``work``; prints how long it took."""
    began = time.monotonic()
    result = work()
    print(f"{what:34} {time.monotonic() - began:6.1f} s", flush=True)
    return result


def first_day(home: Path) -> None:
    """All steps. Ends the script where one fails."""
    with tempfile.TemporaryDirectory() as model, tempfile.TemporaryDirectory() as out:
        tiny_llama.build(Path(model))
        files = {file.name: file.read_bytes() for file in Path(model).iterdir()}
        wheel = next(file for file in timed("build", lambda: release.build(Path(out))) if file.suffix == ".whl")
        with hub.hub(files) as (_, hub_url):
            account = Account(home, hub_url)
            python = str(home / "venv" / "bin" / "python")
            timed("make an environment", lambda: account.run(sys.executable, "-m", "venv", str(home / "venv")))
            timed("install", lambda: account.run(python, "-m", "pip", "install", "-q", str(wheel)))
            use(account)


def use(account: Account) -> None:
    """What comes after the installation."""
    with contextlib.ExitStack() as served:
        timed("first start, with a model fetched", lambda: served.enter_context(account.serving()))
        timed("pull", lambda: account.plimsoll("pull", hub.REPO))
        timed("chat", lambda: account.plimsoll("chat", hub.REPO, "--once", "hello"))
        timed("set", lambda: account.plimsoll("set", hub.REPO, "max_tokens=5", "aliases=mine"))
        began = time.monotonic()
    print(f"{'stop':34} {time.monotonic() - began:6.1f} s")
    with contextlib.ExitStack() as served:
        timed("start again", lambda: served.enter_context(account.serving()))
        timed("chat under the name that was set", lambda: account.plimsoll("chat", "mine", "--once", "hello"))
        row = account.plimsoll("requests", "--limit", "1").splitlines()[1].split()
        if row[3] != hub.REPO or int(row[6]) > 5:
            sys.exit(f"the setting does not hold after the restart: {row}")
    print("the model, its name and its limit are still there")


def main() -> None:
    """Run it in a folder that is removed, or in the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="the home to make, which stays")
    given = parser.parse_args()
    if given.keep:
        given.keep.mkdir(parents=True)
        first_day(given.keep.absolute())
        return
    with tempfile.TemporaryDirectory() as home:
        first_day(Path(home))


if __name__ == "__main__":
    main()
