"""The official client's own ways: async, retries, time limits, leaving early."""

import asyncio
import threading
import time

import openai
import pytest

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Delta, Failed, Finished
from plimsoll.engine.protocol import Usage
from plimsoll.errors import InsufficientMemory, NeverFits, QueueFull

DEADLINE_S = 60
HI = [{"role": "user", "content": "hi"}]


def connect(server, **options):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", **{"timeout": DEADLINE_S} | options)


def in_async_client(server, scenario):
    async def run():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=DEADLINE_S) as client:
            return await scenario(client)

    return asyncio.run(run())


def failing_first(error, says):
    """A script that fails the first chat and answers the others."""
    failed = []

    def script(chat):
        if failed:
            says("Hello")(chat)
        else:
            failed.append(chat)
            chat.reply.send(Failed(error))

    return script


def test_the_async_client_reads_answers_and_streams(server, system, says):
    system.scripts[m.Chat] = says("Hel", "lo")

    async def scenario(client):
        whole = await client.chat.completions.create(model="tiny", messages=HI)
        stream = await client.chat.completions.create(model="tiny", messages=HI, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        legacy = await client.completions.create(model="tiny", prompt="x")
        async with client.responses.stream(model="tiny", input="hi") as events:
            response = await events.get_final_response()
        return whole.choices[0].message.content, text, legacy.choices[0].text, response.output_text

    assert in_async_client(server, scenario) == ("Hello",) * 4


def test_many_async_requests_of_every_kind_do_not_mix(server, system):
    def script(chat):
        request = chat.request
        text = request.prompt or request.messages[-1]["content"]
        threading.Thread(target=lambda: [chat.reply.send(item) for item in (Delta(text, 1), ending)]).start()

    ending = Finished("stop", Usage())
    system.scripts[m.Chat] = script

    async def scenario(client):
        async def one(number):
            asked = f"number {number}"
            if number % 3 == 0:
                told = await client.completions.create(model="tiny", prompt=asked)
                return told.choices[0].text == asked
            if number % 3 == 1:
                told = await client.responses.create(model="tiny", input=asked)
                return told.output_text == asked
            messages = [{"role": "user", "content": asked}]
            told = await client.chat.completions.create(model="tiny", messages=messages, n=2)
            return [choice.message.content for choice in told.choices] == [asked] * 2

        return await asyncio.gather(*(one(number) for number in range(30)))

    assert all(in_async_client(server, scenario))


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_is_retried_after_the_time_the_server_names(server, system, says, monkeypatch, stream):
    slept, this, really_sleep = [], threading.current_thread(), time.sleep

    # ``time`` is one module for all threads, and others sleep too.
    def sleep(seconds):
        (slept.append if threading.current_thread() is this else really_sleep)(seconds)

    monkeypatch.setattr("openai._base_client.time.sleep", sleep)
    system.scripts[m.Chat] = failing_first(QueueFull("64 are waiting", retry_after_s=7), says)
    with connect(server, max_retries=2) as client:
        got = client.chat.completions.create(model="tiny", messages=HI, stream=stream)
        text = "".join(c.choices[0].delta.content or "" for c in got) if stream else got.choices[0].message.content
    assert text == "Hello"
    assert slept == [7]


def test_without_retries_a_full_queue_is_a_rate_limit_error(client, system):
    system.scripts[m.Chat] = lambda chat: chat.reply.send(Failed(QueueFull("64 are waiting", retry_after_s=7)))
    with pytest.raises(openai.RateLimitError) as raised:
        client.chat.completions.create(model="tiny", messages=HI)
    assert raised.value.code == "queue_full"
    assert raised.value.response.headers["retry-after"] == "7"


def test_what_never_fits_is_not_retried(server, system):
    system.scripts[m.Chat] = lambda chat: chat.reply.send(Failed(NeverFits("needs 900 GB")))
    with connect(server, max_retries=3) as client, pytest.raises(openai.InternalServerError) as raised:
        client.chat.completions.create(model="tiny", messages=HI)
    assert raised.value.status_code == 507
    assert system.has_heard(m.Chat) == 1


def test_memory_figures_reach_the_client(client, system):
    error = InsufficientMemory("96 % used", details={"used_percent": 96.0})
    system.scripts[m.Chat] = lambda chat: chat.reply.send(Failed(error))
    with pytest.raises(openai.InternalServerError) as raised:
        client.chat.completions.create(model="tiny", messages=HI)
    assert raised.value.body["memory"] == {"used_percent": 96.0}


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.chat.completions.create(model="tiny", messages=HI, temperature=9),
        lambda client: client.completions.create(model="tiny", prompt="x", temperature=9),
        lambda client: client.responses.create(model="tiny", input="x", temperature=9),
        lambda client: client.chat.completions.create(model="tiny", messages=HI, stream=True, temperature=9),
    ],
    ids=["chat", "completions", "responses", "stream"],
)
def test_a_bad_parameter_is_named_to_the_client(client, call):
    with pytest.raises(openai.BadRequestError, match="temperature is 9") as raised:
        call(client)
    assert raised.value.param == "temperature"
    assert raised.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.chat.completions.create(model="tiny", messages=HI),
        lambda client: client.chat.completions.create(model="tiny", messages=HI, stream=True),
        lambda client: client.completions.create(model="tiny", prompt="x"),
        lambda client: client.responses.create(model="tiny", input="x"),
        lambda client: client.responses.create(model="tiny", input="x", stream=True),
        lambda client: client.embeddings.create(model="tiny", input="x"),
    ],
    ids=["chat", "chat stream", "completions", "responses", "responses stream", "embeddings"],
)
def test_a_client_s_time_limit_cancels_its_request(server, system, call):
    with connect(server, max_retries=0, timeout=0.2) as client, pytest.raises(openai.APITimeoutError):
        call(client)
    assert system.hears(m.Chat).id == system.hears(m.Cancel).id
    assert system.has_heard(m.Cancel) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.chat.completions.create(model="tiny", messages=HI, stream=True),
        lambda client: client.completions.create(model="tiny", prompt="x", stream=True),
        lambda client: client.responses.create(model="tiny", input="x", stream=True),
    ],
    ids=["chat", "completions", "responses"],
)
def test_closing_a_stream_cancels_its_request(client, system, call):
    system.scripts[m.Chat] = lambda chat: chat.reply.send(Delta("Hel", 1))
    with call(client) as stream:
        next(iter(stream))
    assert system.hears(m.Chat).id == system.hears(m.Cancel).id
    assert system.has_heard(m.Cancel) == 0


def test_a_task_that_is_cancelled_cancels_its_request(server, system):
    async def scenario(client):
        task = asyncio.create_task(client.chat.completions.create(model="tiny", messages=HI))
        chat = await asyncio.to_thread(system.hears, m.Chat)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return chat.id, (await asyncio.to_thread(system.hears, m.Cancel)).id

    asked, cancelled = in_async_client(server, scenario)
    assert asked == cancelled
