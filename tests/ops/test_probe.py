"""The probe as monitoring runs it: a file, any Python, one line, an exit code."""

import ast
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PROBE = Path(__file__).parent.parent.parent / "ops" / "probe.py"
DEADLINE_S = 60
MEMORY = {
    "used_percent": 42.1,
    "available_gb": 9.3,
    "total_gb": 16.0,
    "warning_threshold": 85.0,
    "critical_threshold": 95.0,
}
HEALTHY: dict[str, Any] = {"status": "healthy", "memory": MEMORY, "models": [{}, {}], "problems": []}


def probe(*arguments: str, **environment: str) -> tuple[int, str]:
    """The exit code and the one line."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PLIMSOLL", "PYTHON"))}
    # -I and -S: neither the package nor anything else that is installed can be what makes it work.
    done = subprocess.run(  # noqa: PLW1510 - the code is what is tested
        [sys.executable, "-I", "-S", str(PROBE), *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env={**clean, **environment},
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
    return done.returncode, done.stdout.rstrip("\n")


class Stub(threading.Thread):
    """Answers every connection with the same bytes, after what the test lets happen first."""

    def __init__(self, answer: bytes, hold: threading.Event | None = None) -> None:
        super().__init__(daemon=True)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._answer, self._hold = answer, hold
        self.heard: list[str] = []

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                with connection, contextlib.suppress(OSError):
                    self.heard.append(connection.recv(65536).decode())
                    connection.sendall(self._answer)
                    if self._hold:
                        self._hold.wait(DEADLINE_S)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self.join(DEADLINE_S)


Answers = Callable[..., Stub]


@pytest.fixture
def stub() -> Iterator[Answers]:
    started: list[Stub] = []
    hold = threading.Event()

    def start(body: Any, status: int = 200, *, hang: bool = False) -> Stub:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"HTTP/1.1 {status} Whatever\r\nContent-Length: {len(raw)}\r\n\r\n".encode()
        started.append(Stub(raw if isinstance(body, bytes) else head + raw, hold if hang else None))
        started[-1].start()
        return started[-1]

    yield start
    hold.set()
    for one in started:
        one.close()


def test_a_healthy_server_process_is_ok_with_its_figures(serve_process: Callable[..., Any]) -> None:
    server = serve_process(models={"entries": {"tiny": {"source": "fake:"}}})
    code, line = probe("--url", server.url)
    # Whatever else runs on this machine, the word and the code say the same.
    assert line.startswith(f"PLIMSOLL {('OK', 'WARNING', 'CRITICAL')[code]} - ")
    assert re.search(r"memory \d+\.\d% of \d+\.\d GB, 0 models \| used_percent=\d+\.\d%;85;95;0;100 models=0;;;0", line)
    assert probe("--live", "--url", server.url)[0] == 0
    assert probe("--ready", PLIMSOLL_URL=server.url)[1].startswith("PLIMSOLL OK - ready | time=0.")
    assert server.end() == 0
    code, line = probe("--url", server.url)
    assert (code, line) == (2, f"PLIMSOLL CRITICAL - no server answers at {server.url} (Connection refused)")


def test_the_line_is_what_the_monitoring_plugins_convention_asks_for(stub: Answers) -> None:
    code, line = probe("--url", stub(HEALTHY).url, "--timeout", "7")
    words, _, figures = line.partition(" | ")
    assert (code, words) == (0, "PLIMSOLL OK - memory 42.1% of 16.0 GB, 2 models")
    assert re.fullmatch(r"used_percent=42\.1%;85;95;0;100 models=2;;;0 time=\d+\.\d{3}s;;;0;7", figures)


@pytest.mark.parametrize(
    ("changes", "status", "code", "text"),
    [
        ({"status": "warning"}, 200, 1, "PLIMSOLL WARNING - warning; memory 42.1%"),
        ({"status": "degraded", "problems": ["a | b", "c"]}, 200, 1, "WARNING - degraded: a / b; c; memory 42.1%"),
        ({"status": "critical"}, 503, 2, "PLIMSOLL CRITICAL - critical; memory 42.1%"),
        ({"status": "critical"}, 200, 2, "PLIMSOLL CRITICAL - critical; memory 42.1%"),
        ({"memory": {"used_percent": None}}, 200, 0, "OK - memory can't be read, 2 models | models=2;;;0 time="),
        ({"status": "of an unknown kind"}, 200, 3, "PLIMSOLL UNKNOWN - of an unknown kind; memory"),
        ({"problems": ["two\nlines\x1b[2J"], "status": "degraded"}, 200, 1, "degraded: two lines [2J; memory"),
    ],
)
def test_the_status_makes_the_exit_code(
    stub: Answers, changes: dict[str, Any], status: int, code: int, text: str
) -> None:
    found, line = probe("--url", stub(HEALTHY | changes, status).url)
    assert found == code
    assert text in line


def test_the_summary_that_is_told_without_a_key_is_enough(stub: Answers) -> None:
    body = {"status": "healthy", "memory": MEMORY, "level": "normal"}
    code, line = probe("--url", stub(body).url)
    assert (code, line.partition(" | ")[0]) == (0, "PLIMSOLL OK - memory 42.1% of 16.0 GB")


@pytest.mark.parametrize(("option", "path"), [("--live", "/health/live"), ("--ready", "/health/ready")])
def test_live_and_ready_ask_their_own_endpoints(stub: Answers, option: str, path: str) -> None:
    well = stub({"status": "fine", "reasons": []})
    assert probe(option, "--url", well.url + "/prefix/")[0] == 0
    assert well.heard[0].startswith(f"GET /prefix{path} HTTP/1.0\r\n")
    code, line = probe(option, "--url", stub({"status": "not ready", "reasons": ["it stops"]}, 503).url)
    assert (code, "not ready" in line) == (2, True)


def test_no_clean_up_is_started_unless_asked_for(stub: Answers) -> None:
    server = stub(HEALTHY)
    probe("--url", server.url)
    probe("--url", server.url, "--cleanup")
    assert [text.split()[1] for text in server.heard] == ["/health?cleanup=no", "/health"]


@pytest.mark.parametrize("bytes_", [b"", b"HTTP/1.1 200 OK\r\n", b"x"], ids=["silent", "in the head", "garbage"])
def test_a_server_that_hangs_is_critical_in_time(stub: Answers, bytes_: bytes) -> None:
    server = stub(bytes_, hang=True)
    code, line = probe("--url", server.url, "--timeout", "0.3")
    assert (code, line) == (2, f"PLIMSOLL CRITICAL - no answer from {server.url} within 0.3 s")


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP"),
        (b"", "does not speak HTTP"),
        (b"\xff\xfe\x00", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", "answers 200 and is no Plimsoll"),
        (b"HTTP/1.1 200 OK\r\n\r\n[1]", "answers 200 and is no Plimsoll"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://x\r\n\r\n", "answers 302 and is no Plimsoll"),
    ],
)
def test_garbage_is_unknown(stub: Answers, raw: bytes, text: str) -> None:
    code, line = probe("--url", stub(raw).url)
    assert (code, line.startswith("PLIMSOLL UNKNOWN - "), text in line) == (3, True, True)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_unknown_and_says_what_to_do(stub: Answers, status: int) -> None:
    code, line = probe("--url", stub({"error": {"message": "no"}}, status).url)
    assert (code, "--api-key-file" in line) == (3, True)


def test_the_key_comes_from_a_file_or_the_environment(stub: Answers, tmp_path: Path) -> None:
    server, file = stub(HEALTHY), tmp_path / "key"
    file.write_text("from-a-file\n")
    probe("--url", server.url, "--api-key-file", str(file), PLIMSOLL_API_KEY="from-the-environment")
    probe("--url", server.url, PLIMSOLL_API_KEY="from-the-environment")
    probe("--url", server.url)
    keys = [re.findall(r"Authorization: Bearer (\S+)", text) for text in server.heard]
    assert keys == [["from-a-file"], ["from-the-environment"], []]
    assert probe("--url", server.url, "--api-key-file", str(tmp_path / "none"))[0] == 3
    assert probe("--url", server.url, PLIMSOLL_API_KEY="a\r\nInjected: header")[0] == 3


@pytest.mark.parametrize(
    "arguments", [["--url", "ftp://x"], ["--url", "http://h:99999"], ["--url", "a b"], ["--timeout", "0"], ["--what"]]
)
def test_wrong_usage_is_unknown_and_not_critical(arguments: list[str]) -> None:
    assert probe(*arguments)[0] == 3


def test_it_is_python_3_8_and_imports_the_standard_library_alone() -> None:
    tree = ast.parse(PROBE.read_text(), feature_version=(3, 8))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names <= sys.stdlib_module_names
    # What would make it slow.
    assert not names & {"http.client", "urllib.request", "asyncio", "subprocess", "pathlib", "typing", "inspect"}


def test_it_takes_little_processor_time(stub: Answers) -> None:
    """Of processor time, since the wall's depends on who else runs; on an idle machine the two are about the same."""
    server = stub(HEALTHY)
    used = []
    for _ in range(5):
        before = os.times()
        probe("--url", server.url)
        after = os.times()
        used.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(used) < 0.1, f"processor seconds: {used}"
