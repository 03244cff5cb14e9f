"""The built-in model behind a real server process, as its users meet it."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic
import httpx
import ollama
import openai
import psutil
import pytest
import yaml

from plimsoll import config
from plimsoll.catalog.installed import default_cache_dir
from plimsoll.catalog.source import BUILTIN, BUILTIN_EMBEDDING

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
EMBEDDER = BUILTIN_EMBEDDING.name
OTHER = "fake:tokens_per_s=50,answer=la,length=100000,context=1000000"


class Front:
    """A ``plimsoll serve`` process on a free port."""

    def __init__(self, folder: Path) -> None:
        models = {"cache_dir": str(default_cache_dir(config.load())), "entries": {"other": {"source": OTHER}}}
        settings = {"server": {"port": 0}, "models": models, "logging": {"file": "none", "blackbox": "none"}}
        path = folder / "plimsoll.yaml"
        path.write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "plimsoll", "serve", "--config", str(path)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        found = re.search(r"http://[\d.:]+", self.process.stdout.readline())
        assert found
        self.url = found[0]
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)

    def worker(self, model: str = BUILTIN.name) -> psutil.Process:
        models = httpx.get(f"{self.url}/admin/models").json()["models"]
        return psutil.Process(next(one["pid"] for one in models if one["name"] == model))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        assert self.process.stdout
        self.process.stdout.close()


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    one = Front(tmp_path_factory.mktemp("front"))
    yield one
    one.close()
    assert one.process.returncode == 0


def ask(front: Front, **options: object) -> str:
    options = {"model": BUILTIN.name, "messages": QUESTION, "temperature": 0, "max_tokens": 24, **options}
    answer = front.client.chat.completions.create(**options)  # type: ignore[call-overload] # options are checked by the server
    return str(answer.choices[0].message.content)


def dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_the_official_client_streams_the_capital_of_france(front: Front) -> None:
    chunks = front.client.chat.completions.create(
        model=BUILTIN.name,
        messages=QUESTION,  # type: ignore[arg-type] # plain dicts
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, usage = "", None
    for chunk in chunks:
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    assert "Paris" in text
    assert usage is not None
    assert usage.completion_tokens > 3


def test_the_chat_command_answers_too(front: Front) -> None:
    command = [
        sys.executable,
        "-m",
        "plimsoll",
        "chat",
        "--url",
        front.url,
        BUILTIN.name,
        "--temperature",
        "0",
        "--once",
    ]
    done = subprocess.run(
        [*command, "What is the capital of France?"], capture_output=True, text=True, timeout=120, check=True
    )
    assert "Paris" in done.stdout


def test_the_same_request_through_the_three_apis_gives_the_same_answer(front: Front) -> None:
    messages: list[dict[str, str]] = [
        {"role": "system", "content": "Answer in one sentence."},
        {"role": "user", "content": "Why is the sky blue?"},
    ]
    with anthropic.Anthropic(base_url=front.url, api_key="none", max_retries=0) as client:
        asked = client.messages.create(
            model=BUILTIN.name,
            system=messages[0]["content"],
            messages=messages[1:],  # type: ignore[arg-type] # plain dicts
            max_tokens=24,
            extra_body={"temperature": 0},  # this client has no name for it any more
        )
    with ollama.Client(host=front.url) as other:
        told = other.chat(BUILTIN.name, messages=messages, options={"temperature": 0, "num_predict": 24})
    assert ask(front, messages=messages) == asked.content[0].text == told.message.content  # type: ignore[union-attr] # it is text


def test_texts_are_embedded_by_meaning(front: Front) -> None:
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "Interest rates rose again."]
    cat, kitten, rates = (one.embedding for one in front.client.embeddings.create(model=EMBEDDER, input=texts).data)
    assert len(cat) == 384
    assert dot(cat, cat) == pytest.approx(1, abs=1e-4)
    assert dot(cat, kitten) > dot(cat, rates) + 0.3
    with ollama.Client(host=front.url) as client:
        assert client.embed(EMBEDDER, texts[0]).embeddings[0] == pytest.approx(cat, abs=1e-5)


def test_an_answer_is_valid_for_its_schema(front: Front) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "people": {"type": "integer"}},
        "required": ["city", "people"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema}}
    answer = json.loads(ask(front, response_format=form, temperature=1, seed=3, max_tokens=60))
    assert set(answer) == {"city", "people"}
    assert answer["city"] in ("Paris", "Rome")
    assert isinstance(answer["people"], int)


def test_the_front_never_imports_mlx_and_stays_small(front: Front) -> None:
    ask(front)
    process = psutil.Process(front.process.pid)
    mapped = " ".join(one.path for one in process.memory_maps())
    assert not re.search(r"mlx|transformers|numpy", mapped)
    assert process.memory_info().rss < 90 * 1024**2


def test_the_second_turn_of_a_chat_finds_the_first_in_the_cache(front: Front) -> None:
    first = ask(front)
    messages = [*QUESTION, {"role": "assistant", "content": first}, {"role": "user", "content": "And of Italy?"}]
    answer = front.client.chat.completions.create(model=BUILTIN.name, messages=messages, max_tokens=4)  # type: ignore[arg-type] # plain dicts
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert (answer.usage.prompt_tokens_details.cached_tokens or 0) > 20


def test_the_same_seed_gives_the_same_answer_alone_and_among_others(front: Front) -> None:
    async def together() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{front.url}/v1", api_key="none", timeout=120) as client:
            calls = [
                client.chat.completions.create(
                    model=BUILTIN.name,
                    messages=[{"role": "user", "content": "Tell me a story."}],
                    seed=seed,
                    temperature=1.0,
                    max_tokens=12,
                )
                for seed in (7, 7, 8)
            ]
            return [str(answer.choices[0].message.content) for answer in await asyncio.gather(*calls)]

    story = [{"role": "user", "content": "Tell me a story."}]
    alone = ask(front, messages=story, seed=7, temperature=1.0, max_tokens=12)
    first, second, other = asyncio.run(together())
    assert first == second == alone
    assert other != alone


def test_an_answer_survives_its_worker_and_no_other_model_notices(front: Front) -> None:
    story: dict[str, Any] = {**_body(BUILTIN.name), "temperature": 0, "max_tokens": 60}
    undisturbed = _text(_lines(front, story))
    with httpx.stream("POST", f"{front.url}/v1/chat/completions", json=_body("other"), timeout=60) as bystander:
        going_on = bystander.iter_lines()
        next(going_on)
        with httpx.stream("POST", f"{front.url}/v1/chat/completions", json=story, timeout=60) as stream:
            lines = stream.iter_lines()
            seen = [next(lines) for _ in range(8)]
            front.worker().kill()
            seen += lines
        for _ in range(20):
            next(going_on)
    assert not any('"error"' in line for line in seen)
    assert _text(seen) == undisturbed
    assert "Paris" in ask(front)


def test_a_prompt_is_scored_once_though_its_worker_dies_while_it_is_read(front: Front) -> None:
    prompt = "A ship lies deep in the water when her holds are full. " * 60
    body = {"model": BUILTIN.name, "prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}

    def told() -> dict[str, Any]:
        answer = httpx.post(f"{front.url}/v1/completions", json=body, timeout=120).json()
        return dict(answer["choices"][0])

    undisturbed, worker = told(), front.worker()
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(told)
        until = time.monotonic() + 30
        while not _active(front, BUILTIN.name) and time.monotonic() < until:
            time.sleep(0.005)
        worker.kill()
        disturbed = again.result()
    assert front.worker().pid != worker.pid
    assert disturbed["text"] == undisturbed["text"]
    assert disturbed["text"].startswith(prompt)
    before, after = undisturbed["logprobs"], disturbed["logprobs"]
    assert len(after["tokens"]) == len(before["tokens"]) > 700
    assert after["tokens"] == before["tokens"]
    assert after["token_logprobs"][1:] == pytest.approx(before["token_logprobs"][1:], abs=1e-3)


def test_a_client_that_goes_away_frees_its_place_in_the_batch(front: Front) -> None:
    with httpx.stream("POST", f"{front.url}/v1/chat/completions", json=_body("other"), timeout=60) as stream:
        next(stream.iter_lines())
    until = time.monotonic() + 5
    while _active(front, "other"):
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b'{"model": ', 400, "JSON"),
        (b'{"model": "smollm2-135m", "messages": [{"role": "user", "content": "\xff"}]}', 400, "UTF-8"),
        (b'{"model": "smollm2-135m", "messages": []}', 400, "messages"),
        (b'{"model": "smollm2-135m", "messages": "hi"}', 400, "messages"),
        (b'{"model": "gpt-5", "messages": [{"role": "user", "content": "x"}]}', 404, "gpt-5"),
        (b'{"model": "smollm2-135m", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}', 400, "JSON"),
        (
            b'{"model": "smollm2-135m", "messages": [{"role": "user", "content": "x"}], "max_tokens": -2}',
            400,
            "max_tokens",
        ),
        (
            json.dumps({"model": BUILTIN.name, "messages": [{"role": "user", "content": "word " * 9000}]}).encode(),
            400,
            "8192",
        ),
        (b"x" * 100_000_000, 413, "max_body"),
    ],
    ids=lambda value: value[:60].decode("latin-1") if isinstance(value, bytes) else None,
)
def test_bad_input_is_refused_by_name_and_the_server_goes_on(front: Front, body: bytes, status: int, word: str) -> None:
    answer = httpx.post(f"{front.url}/v1/chat/completions", content=body, timeout=60)
    assert answer.status_code == status
    assert word in answer.json()["error"]["message"] or word == answer.json()["error"]["param"]
    assert httpx.get(f"{front.url}/health").status_code == 200


def test_nothing_outlives_a_killed_front(tmp_path: Path) -> None:
    front = Front(tmp_path)
    ask(front, max_tokens=2)
    workers = [front.worker()]
    os.kill(front.process.pid, signal.SIGKILL)
    front.close()
    until = time.monotonic() + 1.0
    while not all(gone(worker) for worker in workers):
        assert time.monotonic() < until
        time.sleep(0.01)


def _body(model: str) -> dict[str, object]:
    messages = [{"role": "user", "content": "Tell me a long story."}]
    return {"model": model, "messages": messages, "stream": True, "max_tokens": 4000}


def _lines(front: Front, body: dict[str, Any]) -> list[str]:
    with httpx.stream("POST", f"{front.url}/v1/chat/completions", json=body, timeout=60) as stream:
        return list(stream.iter_lines())


def _text(lines: list[str]) -> str:
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return "".join(one["delta"].get("content") or "" for chunk in chunks for one in chunk["choices"])


def _active(front: Front, model: str) -> int:
    models = httpx.get(f"{front.url}/admin/models").json()["models"]
    return next(int(one["active"]) for one in models if one["name"] == model)
