"""Real nodes of Ray on this machine, each with its own share of it: for tests and benchmarks of a cluster."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
from lasting_port import lasting_port

DEADLINE_S = 100.0
# By the ledgers ``one`` holds three and ``two`` holds two fake models with ``hold=320MiB``.
ONE_MIB, TWO_MIB = 1800, 1380
# Ray's own monitor would kill at 95 % of the machine, whatever else runs there.
MONITOR_OFF = {"RAY_memory_monitor_refresh_ms": "0"}


class RayNode:
    """``ray start --block`` as a child with a process group of its own, so that it can be killed like a machine."""

    def __init__(self, folder: Path, name: str, mib: int, variables: Mapping[str, str], *options: str) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--node-name={name}"),
            *(
                "--include-log-monitor=false",
                "--num-cpus=1",
                "--object-store-memory=100000000",
                "--disable-usage-stats",
            ),
            *("--min-worker-port=0", "--max-worker-port=0", "--node-ip-address=127.0.0.1"),
            *(f'--resources={{"plimsoll_mib": {mib}}}', *options),
        ]
        homes = {f"XDG_{kind}_HOME": str(folder / kind.lower()) for kind in ("STATE", "CONFIG")}
        environment = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1", **homes, **variables}
        with self.log.open("w") as log:
            self.child = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True
            )

    def processes(self) -> list[psutil.Process]:
        """All of the node that run: Ray's, the node's own and the workers of models."""
        if self.child.poll() is not None:
            return []
        root = psutil.Process(self.child.pid)
        return [root, *root.children(recursive=True)]

    def kill(self) -> None:
        """As a machine that loses its power: everything at once, without a word."""
        if not (family := self.processes()):
            return
        os.killpg(self.child.pid, signal.SIGKILL)
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self.child.wait(DEADLINE_S)


class RayCluster:
    """Ray's head is the node ``one``, the other one is ``two``; ``variables`` are for all nodes.

    Raises ``RuntimeError`` where Ray does not start.
    """

    def __init__(self, variables: Mapping[str, str] = MONITOR_OFF) -> None:
        # Ray's sockets lie below it, and their paths may have no more than 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="pl", dir="/tmp"))
        self._variables = variables
        self._started: list[RayNode] = []
        port = lasting_port()  # Ray takes it seconds from now
        self.address = f"127.0.0.1:{port}"
        head = ("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self.folder}/r")
        try:
            self.one = self._start("one", ONE_MIB, {}, *head)
            self._wait(port)
            self.two = self.start_two()
        except BaseException:
            self.close()
            raise

    def start_two(self) -> RayNode:
        self.two = self.start("two", TWO_MIB)
        return self.two

    def start(self, name: str, mib: int, **variables: str) -> RayNode:
        """One more node, with these variables over those of all."""
        return self._start(name, mib, variables, f"--address={self.address}")

    def close(self) -> None:
        for node in reversed(self._started):
            node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, name: str, mib: int, variables: Mapping[str, str], *options: str) -> RayNode:
        node = RayNode(self.folder, name, mib, {**self._variables, **variables}, *options)
        self._started.append(node)
        return node

    def _wait(self, port: int) -> None:
        until = time.monotonic() + DEADLINE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
            except OSError:
                if time.monotonic() > until or self.one.child.poll() is not None:
                    raise RuntimeError(self.one.log.read_text()) from None
                time.sleep(0.05)
            else:
                return
