"""A model that two processes serve together answers as one process does, through a real server."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from conftest import Process

from plimsoll import config
from plimsoll.catalog.installed import default_cache_dir

TWICE = ["127.0.0.1", "127.0.0.1"]
FRANCE = {"role": "user", "content": "What is the capital of France?"}
STORY = {"role": "user", "content": "Tell me a story about a ship."}
COUNT = {"role": "user", "content": "Please count to twenty, and say each number in words. " * 4}
SHIP = {"model": "pipeline-2", "messages": [STORY], "max_tokens": 24, "temperature": 0, "stream": True}


@pytest.fixture(scope="module")
def models() -> dict[str, Path]:
    """The built-in model in a form for each way to split it, made once per machine."""
    folders = {split: default_cache_dir(config.load()) / "tests" / split for split in ("tensor", "pipeline")}
    script = Path(__file__).parents[1] / "ops" / "bench" / "group.py"
    for split, folder in folders.items():
        subprocess.run([sys.executable, script, "--make-only", "--split", split, folder], check=True)
    return folders


@pytest.fixture(scope="module")
def server(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    entries: dict[str, Any] = {}
    for split, folder in models.items():
        entries[f"{split}-1"] = {"source": str(folder)}
        entries[f"{split}-2"] = {"source": str(folder), "hosts": TWICE, "split": split}
    process = Process(tmp_path_factory.mktemp("group"), models={"entries": entries}, engine={"kv_budget": "256MiB"})
    yield process
    process.close()


async def ask(client: httpx.AsyncClient, model: str, *messages: dict[str, str], tokens: int = 8) -> tuple[str, int]:
    """The greedy answer and how much of its prompt was known."""
    body = {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0}
    answer = (await client.post("/v1/chat/completions", json=body)).json()
    assert "error" not in answer, answer
    return answer["choices"][0]["message"]["content"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]


async def give_up(client: httpx.AsyncClient, model: str) -> None:
    """Ask for a long answer and go away after its first words."""
    body = {"model": model, "messages": [STORY], "max_tokens": 400, "stream": True}
    async with client.stream("POST", "/v1/chat/completions", json=body) as stream:
        async for line in stream.aiter_lines():
            if '"content"' in line:
                return


async def converse(url: str, model: str) -> list[tuple[str, int]]:
    """Requests that join, leave and end at different times, and second turns; some alone, some side by side."""
    async with httpx.AsyncClient(base_url=url, timeout=100) as client:
        first = await ask(client, model, FRANCE)
        together = asyncio.gather(
            ask(client, model, STORY, tokens=6),
            ask(client, model, FRANCE, tokens=3),
            ask(client, model, COUNT, tokens=4),
            give_up(client, model),
        )
        *others, _ = await together
        second = await ask(client, model, FRANCE, {"role": "assistant", "content": first[0]}, STORY, tokens=4)
        third = await ask(client, model, STORY, {"role": "assistant", "content": others[0][0]}, FRANCE, tokens=4)
        return [first, *others, second, third]


@pytest.mark.parametrize("split", ["tensor", "pipeline"])
def test_two_ranks_say_what_one_process_says(server: Process, split: str) -> None:
    alone = asyncio.run(converse(server.url, f"{split}-1"))
    together = asyncio.run(converse(server.url, f"{split}-2"))
    assert [text for text, _ in together] == [text for text, _ in alone]
    assert "Paris" in together[0][0]
    assert [cached > 20 for _, cached in together[-2:]] == [True, True], "second turns begin with what was read"
    (told,) = [one for one in read(server, "/admin/models")["models"] if one["name"] == f"{split}-2"]
    assert [host["host"] for host in told["hosts"]] == ["127.0.0.1"]
    assert told["footprint_bytes"] > 500 * 1024**2, "both ranks are measured"


@pytest.mark.parametrize("split", ["tensor", "pipeline"])
def test_two_ranks_score_a_prompt_as_one_process_does(server: Process, split: str) -> None:
    def scores(model: str) -> dict[str, Any]:
        body = {"model": model, "prompt": COUNT["content"], "echo": True, "logprobs": 1, "max_tokens": 2}
        answer = httpx.post(f"{server.url}/v1/completions", json={**body, "temperature": 0}, timeout=100).json()
        told: dict[str, Any] = answer["choices"][0]["logprobs"]
        return told

    alone, together = scores(f"{split}-1"), scores(f"{split}-2")
    assert len(alone["tokens"]) > 50
    assert together["tokens"] == alone["tokens"]
    assert together["token_logprobs"][0] is None
    assert together["token_logprobs"][1:] == pytest.approx(alone["token_logprobs"][1:], abs=1e-2)


@pytest.fixture(scope="module")
def undisturbed(server: Process) -> str:
    """The answer to ``SHIP`` of a group of which no rank ends."""
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=SHIP, timeout=100) as stream:
        return _text(list(stream.iter_lines()))


@pytest.mark.parametrize("rank", [0, 1])
def test_an_answer_survives_the_ranks_of_its_group(server: Process, undisturbed: str, rank: int) -> None:
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=SHIP, timeout=100) as stream:
        lines = stream.iter_lines()
        seen = [next(lines) for _ in range(8)]
        ranks = worker_processes(server, "pipeline-2")
        os.kill(ranks[rank].pid, signal.SIGKILL)
        seen += lines
    assert not any('"error"' in line for line in seen)
    assert _text(seen) == undisturbed
    assert not psutil.wait_procs(ranks, timeout=60)[1]


def _text(lines: list[str]) -> str:
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return "".join(one["delta"].get("content") or "" for chunk in chunks for one in chunk["choices"])


def test_heads_that_can_not_be_shared_are_refused_before_a_process_is_started(
    serve_process: Callable[..., Process], models: dict[str, Path]
) -> None:
    entries = {"odd": {"source": str(models["pipeline"]), "hosts": TWICE}}
    process = serve_process(models={"entries": entries})
    body = {"model": "odd", "messages": [FRANCE]}
    answer = httpx.post(f"{process.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 503
    assert "it has 9 attention heads, which 2 hosts can't share evenly" in answer.json()["error"]["message"]
    assert not psutil.Process(process.child.pid).children()


async def ask_once(server: Process, model: str) -> tuple[str, int]:
    async with httpx.AsyncClient(base_url=server.url, timeout=100) as client:
        return await ask(client, model, FRANCE)


def read(server: Process, path: str) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"{server.url}{path}", timeout=60).json()
    return answer


def worker_processes(server: Process, model: str) -> list[psutil.Process]:
    """Those of the group, the first rank's in front."""
    first = next(one["pid"] for one in read(server, "/admin/models")["models"] if one["name"] == model)
    groups = [
        one
        for one in psutil.Process(server.child.pid).children()
        if one.environ().get("OPENBLAS_NUM_THREADS") and one.status() != psutil.STATUS_ZOMBIE
    ]
    mine = [one for one in groups if one.pid == first]
    return mine + [one for one in groups if one.pid != first][-1:]
