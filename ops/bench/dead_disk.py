"""What ``models.dir`` costs a request, and what it costs when its disk does not answer.

    python ops/bench/dead_disk.py [--seconds 20]

A hundred models and a lookup; then the real server twice: ``models.dir`` is a file system that hangs (real FUSE), and
one folder in it is. A stream runs and the probes are asked meanwhile. Exits with 1 where a figure is missed.
"""

import argparse
import ctypes
import json
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx

from plimsoll import config
from plimsoll.catalog.names import Catalog

_LOOKUP_S = 100e-6
_AT_ONCE_S = 0.5
_ENTRIES = {
    "busy": {"source": "fake:tokens_per_s=50,answer=la,length=100000,context=1000000"},
    "other": {"source": "fake:"},
}
_CHAT = {"model": "busy", "messages": [{"role": "user", "content": "hello"}], "stream": True}
_REQUEST = struct.Struct("<IIQQIIII")  # fuse_in_header: length, operation, number of the request, and who asks
_ANSWER = struct.Struct("<IiQ")  # fuse_out_header: length, error, number of the request
_INIT = struct.Struct("<IIIIHHIIHHIIII")  # fuse_init_out up to its reserved fields, 64 bytes long
_DIRECTORY = 0o40000
_NO_SUID_NO_DEV = 2 | 4
_DETACH = 2


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long the disk is dead")
    seconds = parser.parse_args().seconds
    print(f"load average: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as scratch:
        fine = _lookup(Path(scratch, "hundred"))
        for what in ("all of models.dir", "one folder in it"):
            fine = _dead(Path(scratch, what.replace(" ", "-")), what, seconds) and fine
    return 0 if fine else 1


def _lookup(folder: Path) -> bool:
    _models(folder, 100)
    catalog = Catalog(config.parse({"models": {"dir": str(folder), "entries": {}}}).models)
    rounds = 2000
    began = time.perf_counter()
    for number in range(rounds):
        catalog.find(f"m{number % 100:03}")
    took_s = (time.perf_counter() - began) / rounds
    began, cpu_began = time.perf_counter(), time.process_time()
    look = catalog.look_again()
    assert look
    look.result(10)
    look_ms, cpu_ms = 1e3 * (time.perf_counter() - began), 1e3 * (time.process_time() - cpu_began)
    print(
        f"100 models: a lookup takes {1e6 * took_s:.2f} us; a look at the folder {look_ms:.1f} ms, {cpu_ms:.1f} of CPU"
    )
    return took_s < _LOOKUP_S


def _dead(home: Path, what: str, seconds: float) -> bool:
    folder = home / "models"
    if what == "one folder in it":
        _models(folder, 3)
    try:
        disk = HangingDisk(folder if what == "all of models.dir" else folder / "hangs")
    except OSError as error:
        print(f"{what} hangs: not measured, no such file system can be mounted here ({error})")
        return True
    settings = {
        "server": {"port": 0, "shutdown_grace": "1s", "responses_folder": "none"},
        "models": {"dir": str(folder), "builtin": False, "entries": _ENTRIES, "cache_dir": str(home)},
        "logging": {"file": str(home / "log"), "blackbox": "none"},
    }
    file = home / "config.yaml"
    file.write_text(json.dumps(settings))
    began = time.monotonic()
    server = subprocess.Popen(
        [sys.executable, "-m", "plimsoll", "serve", "--config", str(file)], stdout=subprocess.PIPE, text=True, cwd=home
    )
    try:
        assert server.stdout
        url = server.stdout.readline().split()[2].partition("/v1")[0]
        print(f"{what} hangs: the server starts in {time.monotonic() - began:.1f} s")
        return _measure(url, seconds, server.pid)
    finally:
        disk.close()  # before the server: a thread in such a file system keeps its process from ending
        server.terminate()
        server.wait(60)


def _measure(url: str, seconds: float, pid: int) -> bool:
    stream = _Stream(url)
    stream.start()
    slowest = dict.fromkeys(("/health/live", "/health", "/v1/models", "/api/tags"), 0.0)
    with httpx.Client(base_url=url, timeout=60) as http:
        stream.begun.wait(30)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for path in ("/health/live", "/health", "/v1/models"):
                slowest[path] = max(slowest[path], _took_s(http, "GET", path))
            time.sleep(0.05)
        slowest["/api/tags"] = _took_s(http, "GET", "/api/tags")
        unknown_s = _took_s(http, "POST", "/v1/chat/completions", {**_CHAT, "model": "hangs"})
        other_s = _took_s(http, "POST", "/v1/chat/completions", {**_CHAT, "model": "other", "stream": False})
        problems = http.get("/health").json()["problems"]
    gap_s = stream.longest_s
    threads = len(list(Path(f"/proc/{pid}/task").iterdir())) if Path("/proc").exists() else 0
    for path, took_s in slowest.items():
        print(f"  {path}: {1e3 * took_s:.0f} ms at the slowest")
    print(f"  a running stream stood still for {1e3 * gap_s:.0f} ms at the longest ({stream.count} pieces)")
    print(f"  a name that can't be looked up is answered in {unknown_s:.1f} s")
    print(f"  another model loads and answers in {other_s:.1f} s")
    print(f"  threads of the server: {threads}; health says: {'; '.join(problems)}")
    probes = all(slowest[path] < _AT_ONCE_S for path in ("/health/live", "/health", "/v1/models"))
    return probes and gap_s < _AT_ONCE_S and bool(problems)


class _Stream(threading.Thread):
    """One stream: how long it stood still at the longest, after its first piece."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.begun = threading.Event()
        self.longest_s = 0.0
        self.count = 0
        self._url = url

    def run(self) -> None:
        with httpx.stream("POST", f"{self._url}/v1/chat/completions", json=_CHAT, timeout=60) as response:
            last = 0.0
            for _ in response.iter_raw():
                now = time.monotonic()
                if last and self.count > 5:
                    self.longest_s = max(self.longest_s, now - last)
                last = now
                self.count += 1
                if self.count > 5:
                    self.begun.set()


def _took_s(http: httpx.Client, method: str, path: str, body: object = None) -> float:
    began = time.monotonic()
    http.request(method, path, json=body)
    return time.monotonic() - began


def _models(folder: Path, count: int) -> None:
    for number in range(count):
        one = folder / f"m{number:03}"
        one.mkdir(parents=True)
        (one / "config.json").write_text("{}")
        (one / "model.safetensors").write_bytes(b"12345678")


class HangingDisk:
    """A file system that never answers: FUSE without a library, spoken just far enough to be mounted at ``folder``.

    Whatever looks below ``folder`` waits in the kernel until ``close``, as on a dead share. Needs Linux,
    ``/dev/fuse`` and the right to mount; raises ``OSError`` where the folder can't be mounted.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self._fd},rootmode={_DIRECTORY:o},user_id={os.getuid()},group_id={os.getgid()},allow_other"
        if self._libc.mount(b"hanging", os.fsencode(folder), b"fuse", _NO_SUID_NO_DEV, options.encode()):
            os.close(self._fd)
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(folder))
        self._begin()

    def close(self) -> None:
        """End it: whoever waits gets an error."""
        os.close(self._fd)
        self._libc.umount2(os.fsencode(self.folder), _DETACH)

    def _begin(self) -> None:
        """Answer the kernel's first request, and none after it."""
        number = _REQUEST.unpack_from(os.read(self._fd, 1 << 17))[2]
        body = _INIT.pack(7, 31, 0, 0, 0, 0, 1 << 17, 1, 0, 0, 0, 0, 0, 0).ljust(64, b"\0")
        os.write(self._fd, _ANSWER.pack(_ANSWER.size + len(body), 0, number) + body)


if __name__ == "__main__":
    sys.exit(main())
