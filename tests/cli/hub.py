"""A Hugging Face hub of one repo, as far as its library asks: the list of files, their heads, parts of them."""

import contextlib
import hashlib
import http.server
import json
import struct
import threading
import urllib.parse
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "org/tiny"


def model_files(weights_bytes, announced_bytes=None):
    """A repo's files: a Llama of one layer with zeros of ``weights_bytes``; its header may announce another size."""
    values = (announced_bytes or weights_bytes) // 4
    tensor = {"dtype": "F32", "shape": [values], "data_offsets": [0, 4 * values]}
    header = json.dumps({"model.embed_tokens.weight": tensor}).encode()
    config = {"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4}
    return {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": struct.pack("<Q", len(header)) + header + bytes(weights_bytes),
        "README.md": b"is not fetched",
    }


def part(home):
    """How many bytes of files that were begun lie in the cache under ``home``."""
    blobs = Path(home, "hub", "models--org--tiny", "blobs")
    return lambda: sum(file.stat().st_size for file in blobs.glob("*.incomplete"))


class Hub:
    """``ranges`` are those asked for of weights; after ``cut_at`` bytes it stalls, once; ``claims`` are sizes."""

    def __init__(self, files):
        self.files = files
        self.ranges = []
        self.cut_at = None
        self.claims = {}
        self.hashes = {}
        self.missing = False
        self.found = []
        self.searched = []
        self.stalled = threading.Event()
        self.go_on = threading.Event()

    def answer(self, handler, *, head):
        path = urllib.parse.urlsplit(handler.path).path
        if self.missing:
            return self._not_found(handler)
        if path == "/api/models":
            self.searched.append(urllib.parse.parse_qs(urllib.parse.urlsplit(handler.path).query))
            return self._send(handler, json.dumps(self.found).encode())
        if path.startswith(f"/api/models/{REPO}/tree"):
            files = [self._entry(name) for name in self.files]
            return self._send(handler, json.dumps(files).encode())
        if path.startswith(f"/api/models/{REPO}"):
            siblings = [{"rfilename": name} for name in self.files]
            body = {"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
            return self._send(handler, json.dumps(body).encode())
        name = path.rpartition("/")[2]
        if f"/{REPO}/resolve/" not in path or name not in self.files:
            return self._not_found(handler)
        return self._send_file(handler, name, head=head)

    def _not_found(self, handler):
        handler.send_response(404)
        handler.send_header("X-Error-Code", "RepoNotFound")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def _entry(self, name):
        body = self.files[name]
        oid = hashlib.sha1(body).hexdigest()
        return {"type": "file", "path": name, "size": self.claims.get(name, len(body)), "oid": oid}

    def _send(self, handler, body):
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def _send_file(self, handler, name, *, head):
        body = self.files[name]
        asked = handler.headers.get("Range")
        first, last = 0, len(body) - 1
        if asked and not head:
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(int(end or last), last)
            if name.endswith("safetensors"):
                self.ranges.append(asked)
        handler.send_response(206 if asked and not head else 200)
        handler.send_header("ETag", f'"{self.hashes.get(name) or hashlib.sha256(body).hexdigest()}"')
        handler.send_header("X-Repo-Commit", COMMIT)
        handler.send_header("Accept-Ranges", "bytes")
        size = self.claims.get(name, len(body)) if head else last - first + 1
        handler.send_header("Content-Length", str(size))
        if asked and not head:
            handler.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
        handler.end_headers()
        if head:
            return None
        part = body[first : last + 1]
        if self.cut_at is not None and name.endswith("safetensors") and len(part) > self.cut_at:
            handler.wfile.write(part[: self.cut_at])
            handler.wfile.flush()
            self.cut_at = None
            self.stalled.set()
            handler.close_connection = True  # or a patient client waits for the rest
            return self.go_on.wait(60)
        handler.wfile.write(part)
        return None


@contextlib.contextmanager
def hub(files):
    """The hub and its address."""
    it = Hub(files)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            with contextlib.suppress(OSError):
                it.answer(self, head=False)

        def do_HEAD(self):
            it.answer(self, head=True)

        def log_message(self, *args):
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield it, f"http://127.0.0.1:{server.server_port}"
        finally:
            it.go_on.set()
            server.shutdown()
            thread.join()
