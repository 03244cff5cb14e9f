"""A disk that does not answer costs the models on it, and nothing else: the real server, a stream, and such a disk."""

import json
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

HERE = Path(__file__).parent
DEADLINE_S = 60.0
# What a request that has nothing to do with the disk may take on a busy machine; a lookup on the loop would take
# as long as the disk is dead. ``ops/bench/dead_disk.py`` holds half of it.
AT_ONCE_S = 1.0
STREAM = {"model": "busy", "messages": [{"role": "user", "content": "hello"}], "stream": True}


def mlx_folder(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))


class Share:
    """A folder that stops answering and answers again, for the server that is started with this environment."""

    def __init__(self, folder: Path, dead: Path, switch: Path) -> None:
        self.folder = folder
        self.dead = dead
        self._switch = switch

    def dies(self) -> None:
        self._switch.touch()

    def comes_back(self) -> None:
        self._switch.unlink(missing_ok=True)


@pytest.fixture(params=["all of models.dir", "one folder in it"])
def share(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Share]:
    folder = tmp_path / "share"
    for name in ("a", "b", "c"):
        mlx_folder(folder / name)
    dead = folder if request.param == "all of models.dir" else folder / "a"
    made = Share(folder, dead, tmp_path / "dead")
    monkeypatch.setenv("PYTHONPATH", str(HERE / "dead_disk"))
    monkeypatch.setenv("DEAD_DISK", str(dead))
    monkeypatch.setenv("DEAD_DISK_WHILE", str(tmp_path / "dead"))
    yield made
    made.comes_back()


@pytest.fixture
def settings(share: Share) -> dict[str, Any]:
    entries = {
        "busy": {"source": "fake:tokens_per_s=50,answer=la,length=100000,context=1000000"},
        "other": {"source": "fake:"},
    }
    return {"models": {"dir": str(share.folder), "entries": entries}}


class Gaps:
    """One stream, read on a thread: how long it ever stood still."""

    def __init__(self, url: str) -> None:
        self.longest_s = 0.0
        self.count = 0
        self._url = url
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._thread.start()
        until(lambda: self.count > 5)
        self.longest_s = 0.0
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join(DEADLINE_S)

    def _read(self) -> None:
        with httpx.stream("POST", f"{self._url}/v1/chat/completions", json=STREAM, timeout=DEADLINE_S) as response:
            last = time.monotonic()
            for _ in response.iter_raw():
                now = time.monotonic()
                self.longest_s, last = max(self.longest_s, now - last), now
                self.count += 1
                if self._ends.is_set():
                    return


def until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return value


def ask(http: httpx.Client, model: str) -> httpx.Response:
    return http.post("/v1/chat/completions", json=STREAM | {"model": model, "stream": False, "max_tokens": 2})


def took_s(http: httpx.Client, path: str) -> float:
    began = time.monotonic()
    assert http.get(path).status_code == 200
    return time.monotonic() - began


def test_a_disk_that_dies_delays_nothing_that_is_not_on_it(
    share: Share, settings: dict[str, Any], serve_process: Callable[..., Any]
) -> None:
    server = serve_process(**settings)
    with httpx.Client(base_url=server.url, timeout=DEADLINE_S) as http, Gaps(server.url) as stream:
        names = [one["id"] for one in http.get("/v1/models").json()["data"]]
        assert names == ["busy", "other", "a", "b", "c"]
        share.dies()
        # Their files are weighed, which hangs: more of them than any pool of threads would bear.
        waiting = [threading.Thread(target=lose, args=(server.url, name)) for name in ("a", "b", "c", "a")]
        for thread in waiting:
            thread.daemon = True
            thread.start()
        # Before and after the server has found out: a lookup on the loop would hang in either.
        asked, known, end = 0, False, time.monotonic() + DEADLINE_S
        while not known or asked < 40:
            assert time.monotonic() < end
            assert max(took_s(http, path) for path in ("/health/live", "/health", "/v1/models")) < AT_ONCE_S
            asked += 1
            known = any("has not answered for" in problem for problem in http.get("/health").json()["problems"])
            time.sleep(0.05)
        began = time.monotonic()
        assert ask(http, "other").status_code == 200  # it is loaded now
        assert time.monotonic() - began < 5.0
        assert ask(http, "nothing").status_code == (503 if share.dead == share.folder else 404)
        assert [one["id"] for one in http.get("/v1/models").json()["data"]] == names
        problems = http.get("/health").json()["problems"]
        assert any(f"{share.dead} has not answered for" in problem for problem in problems), problems
        assert "what it holds is known as of" in server.logged(f"{share.dead} has not answered")
        assert len(http.get("/api/tags").json()["models"]) == 5
        assert stream.longest_s < AT_ONCE_S
        share.comes_back()
        until(lambda: not any("answer" in problem for problem in http.get("/health").json()["problems"]))
        assert server.logged("answers again")
        mlx_folder(share.folder / "d")
        assert ask(http, "d").status_code == 503  # found: it has no tokenizer


def lose(url: str, model: str) -> None:
    """Ask a model whose files don't answer; what becomes of it is another test's."""
    try:
        with httpx.Client(base_url=url, timeout=60) as http:
            ask(http, model)
    except httpx.HTTPError:
        pass


def test_a_server_starts_beside_a_dead_disk(
    share: Share, settings: dict[str, Any], serve_process: Callable[..., Any]
) -> None:
    settings["models"]["entries"] |= {
        "folder": {"source": str(share.folder / "a")},
        "file": {"source": str(share.folder / "a" / "weights.gguf")},
    }
    share.dies()
    began = time.monotonic()
    server = serve_process(**settings)
    assert time.monotonic() - began < DEADLINE_S
    with httpx.Client(base_url=server.url, timeout=DEADLINE_S) as http:
        assert took_s(http, "/health/live") < AT_ONCE_S
        assert ask(http, "other").status_code == 200
        began = time.monotonic()
        reloaded = http.post("/admin/reload")
        assert (reloaded.status_code, time.monotonic() - began < 15.0) == (200, True)
        plan = http.get("/admin/plan", params={"model": "folder"})
        assert plan.status_code == 503
        assert "has not answered" in plan.json()["error"]["message"]
        share.comes_back()
        until(lambda: "b" in [one["id"] for one in http.get("/v1/models").json()["data"]])
        until(lambda: http.get("/admin/plan", params={"model": "folder"}).status_code == 200)
    assert server.end() == 0
