"""The three APIs over real actors and real workers on the fake engine."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import anthropic
import ollama
import openai
import pytest
from sanic import Sanic

from plimsoll import config as configuration
from plimsoll.actors.system import ActorSystem
from plimsoll.catalog.names import Catalog
from plimsoll.http.app import build
from plimsoll.http.server import bind, new_loop, run

DEADLINE_S = 60
USER = [{"role": "user", "content": "one two three"}]
ENTRIES = {
    "tiny": {"source": "fake:hold=1MiB", "idle_ttl": None},
    "short": {"source": "fake:", "idle_ttl": "1h"},
    "slow": {"source": "fake:tokens_per_s=20,answer=la,length=100000,context=1000000", "idle_ttl": None},
    "dying": {"source": "fake:crash_at=2,tokens_per_s=20", "idle_ttl": None},
}
TOOL = {
    "name": "add",
    "description": "Adds.",
    "input_schema": {"type": "object", "properties": {"a": {"type": "number"}}},
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    sections = {"models": {"builtin": False, "entries": ENTRIES}, "memory": {"patience": 0}}
    parsed = configuration.parse({**sections, "logging": {"blackbox": "none"}})
    catalog = Catalog(parsed.models)
    app = build(parsed, ActorSystem(parsed, catalog), catalog, None)
    sock = bind("127.0.0.1", 0)
    ready, stops = threading.Event(), []

    def start(stop: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        stops.append(lambda: loop.call_soon_threadsafe(stop))

    def serve() -> None:
        with sock, asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(run(app, sock, start, ready.set))

    thread = threading.Thread(target=serve)
    address = f"http://127.0.0.1:{sock.getsockname()[1]}"
    thread.start()
    assert ready.wait(DEADLINE_S)
    yield address
    stops[0]()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    Sanic.unregister_app(app)


@pytest.fixture(autouse=True)
def _no_actor_is_left() -> None:
    """Instead of the fixture that stops all actors after every test: this module's server goes on."""


@pytest.fixture
def llama(url: str) -> Iterator[ollama.Client]:
    with ollama.Client(url, timeout=DEADLINE_S) as made:
        yield made


@pytest.fixture
def claude(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=DEADLINE_S) as made:
        yield made


def loaded(llama: ollama.Client) -> dict[str | None, Any]:
    return {one.model: one for one in llama.ps().models}


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def left(model: Any) -> timedelta:
    return model.expires_at - datetime.now(UTC)  # type: ignore[no-any-return] # a datetime


def test_one_prompt_has_one_answer_in_all_three_apis(
    url: str, llama: ollama.Client, claude: anthropic.Anthropic
) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=DEADLINE_S) as gpt:
        first = gpt.chat.completions.create(model="tiny", messages=USER, temperature=0)  # type: ignore[arg-type] # plain dicts
    second = claude.messages.create(model="tiny", messages=USER, max_tokens=50)  # type: ignore[arg-type] # plain dicts
    third = llama.chat("tiny", USER, options={"temperature": 0})
    fourth = llama.generate("tiny", USER[0]["content"])
    assert first.choices[0].message.content == "one two three"
    assert [block.text for block in second.content if block.type == "text"] == ["one two three"]
    assert (third.message.content, fourth.response) == ("one two three", "one two three")
    assert first.usage is not None
    assert first.usage.completion_tokens == second.usage.output_tokens == third.eval_count == 3


def test_tools_are_called_through_both(llama: ollama.Client, claude: anthropic.Anthropic) -> None:
    asked = [{"role": "user", "content": 'call add {"a": 1}'}]
    answer = claude.messages.create(model="tiny", messages=asked, max_tokens=50, tools=[TOOL])  # type: ignore[arg-type] # plain dicts
    calls = [block for block in answer.content if block.type == "tool_use"]
    assert answer.stop_reason == "tool_use"
    assert [(call.name, call.input) for call in calls] == [("add", {"a": 1})]
    result = {"type": "tool_result", "tool_use_id": calls[0].id, "content": "two"}
    talk = [*asked, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    again = claude.messages.create(model="tiny", messages=talk, max_tokens=50, tools=[TOOL])  # type: ignore[arg-type] # plain dicts
    assert again.stop_reason == "end_turn"
    function = {"name": "add", "description": "Adds.", "parameters": TOOL["input_schema"]}
    said = llama.chat("tiny", asked, tools=[{"type": "function", "function": function}]).message
    assert said.tool_calls is not None
    assert (said.tool_calls[0].function.name, said.tool_calls[0].function.arguments) == ("add", {"a": 1})


def test_tokens_are_counted(claude: anthropic.Anthropic) -> None:
    assert claude.messages.count_tokens(model="tiny", messages=USER).input_tokens == 3  # type: ignore[arg-type] # plain dicts


def test_a_lease_begins_ends_and_lasts(llama: ollama.Client) -> None:
    llama.generate("tiny", keep_alive=0)
    assert "tiny" not in loaded(llama)
    assert llama.generate("tiny", keep_alive="10m").done_reason == "load"
    # The model's own word comes to the Supervisor a moment later.
    until(lambda: timedelta(minutes=9) < left(loaded(llama)["tiny"]) < timedelta(minutes=11))
    llama.chat("tiny", USER, keep_alive=30)
    until(lambda: left(loaded(llama)["tiny"]) < timedelta(seconds=31))
    llama.chat("tiny", USER, keep_alive=-1)
    until(lambda: left(loaded(llama)["tiny"]) > timedelta(days=36500))
    answer = llama.chat("tiny", USER, keep_alive=0)
    assert answer.message.content == "one two three"
    until(lambda: "tiny" not in loaded(llama))


def test_keep_alive_0_on_a_cold_model_still_answers(llama: ollama.Client) -> None:
    llama.generate("tiny", keep_alive=0)
    answer = llama.chat("tiny", USER, keep_alive=0)
    assert answer.message.content == "one two three"
    assert (answer.load_duration or 0) > 0
    until(lambda: "tiny" not in loaded(llama))


def test_a_lease_holds_for_the_life_that_answers(llama: ollama.Client) -> None:
    # The second chat meets a model that is just leaving: its lease was lost on the dying actor.
    for _ in range(5):
        assert llama.chat("tiny", USER, keep_alive=0).message.content == "one two three"
    until(lambda: "tiny" not in loaded(llama))


def test_a_lease_is_no_longer_than_the_idle_ttl(llama: ollama.Client) -> None:
    llama.chat("short", USER, keep_alive=-1)
    assert left(loaded(llama)["short"]) < timedelta(hours=1, seconds=1)


def test_a_short_lease_runs_out(llama: ollama.Client) -> None:
    llama.chat("short", USER, keep_alive="200ms")
    until(lambda: "short" not in loaded(llama))


def test_a_busy_model_is_not_torn_from_its_answer(llama: ollama.Client, url: str) -> None:
    with contextlib.closing(llama.chat("slow", USER, stream=True)) as parts, ollama.Client(url) as other:
        next(parts)
        assert other.generate("slow", keep_alive=0).done_reason == "unload"
        assert next(parts).message.content
    until(lambda: "slow" not in loaded(llama))


def test_a_worker_that_dies_is_told_in_mid_stream(llama: ollama.Client, claude: anthropic.Anthropic) -> None:
    with pytest.raises(ollama.ResponseError):
        list(llama.chat("dying", USER, stream=True))
    with (
        pytest.raises(anthropic.APIStatusError),
        claude.messages.stream(model="dying", messages=USER, max_tokens=9) as stream,  # type: ignore[arg-type] # plain dicts
    ):
        stream.until_done()
