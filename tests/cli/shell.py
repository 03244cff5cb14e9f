"""Plimsoll run as its users run it: commands as processes, and servers for them to talk to."""

import contextlib
import http.server
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time

import httpx
import yaml

DEADLINE_S = 60
PLIMSOLL = [sys.executable, "-m", "plimsoll"]


def plimsoll(*arguments, given="", **environment):
    """The finished process."""
    return subprocess.run(
        [*PLIMSOLL, *arguments],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
        env={**os.environ, **environment},
    )


def write(folder, data, name="config.yaml"):
    path = folder / name
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return str(path)


def fails(done, code, *words):
    """One line on stderr, nothing on stdout."""
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr


@contextlib.contextmanager
def serving(folder, entries, port=0, **sections):
    """The URL of a server process with these models on the fake engine."""
    models = {"builtin": False, "cache_dir": str(folder), "entries": entries}
    server = {"port": port, "keepalive": "100ms"}
    file = write(folder, {"server": server, "models": models, **sections}, "served.yaml")
    command = [*PLIMSOLL, "serve", "--config", file]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        try:
            yield child.stdout.readline().split()[2].partition("/v1")[0]
        finally:
            # Twice: an answer that a failed test left running must not be waited for.
            child.send_signal(signal.SIGTERM)
            child.send_signal(signal.SIGINT)
            child.wait(DEADLINE_S)


@contextlib.contextmanager
def answering(answer):
    """The URL of a server that gives ``answer(request)``, a status and a body, and the list of requests it saw."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            length = int(self.headers.get("Content-Length", 0))
            self.body = self.rfile.read(length)
            seen.append(self)
            status, body = answer(self)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the name that the base class looks for

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", seen
        finally:
            server.shutdown()
            thread.join()


class Terminal:
    """A command on a pseudo-terminal."""

    def __init__(self, *arguments, term="dumb"):
        # Its own session with the terminal as the controlling one, so that Ctrl-C arrives as for a person.
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.environ.update(TERM=term, COLUMNS="100", LINES="30")
            os.execv(sys.executable, [*PLIMSOLL, *arguments])
        self.seen = ""

    def types(self, text):
        os.write(self._fd, text.encode())

    def shows(self, text):
        """Wait for ``text``; what came before it is dropped."""
        until = time.monotonic() + DEADLINE_S
        while text not in self.seen:
            ready, _, _ = select.select([self._fd], [], [], max(0, until - time.monotonic()))
            assert ready, f"{text!r} did not come; there is {self.seen!r}"
            self.seen += os.read(self._fd, 65536).decode("utf-8", "replace")
        self.seen = self.seen.partition(text)[2]

    def ends(self):
        # What it still writes has to be read, or it would wait for that.
        with contextlib.suppress(OSError):
            while os.read(self._fd, 65536):
                pass
        _, status = os.waitpid(self._pid, 0)
        os.close(self._fd)
        return os.waitstatus_to_exitcode(status)


def states(url):
    return {one["name"]: one["state"] for one in httpx.get(f"{url}/admin/models").json()["models"]}


def until(condition, what):
    """The condition's first true value."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"not in {DEADLINE_S} s: {what}")
