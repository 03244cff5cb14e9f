"""The asyncio end of a reply."""

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pykka
import pytest

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Delta, Failed, Finished, Waiting
from plimsoll.engine.protocol import ChatRequest, Usage
from plimsoll.errors import QueueFull, Unavailable
from plimsoll.http.answer import Answer
from plimsoll.inbox import Inbox, ask

DEADLINE_S = 60


class Echo(pykka.ThreadingActor):
    """Answers every message with what it was made with."""

    def __init__(self, *answers):
        super().__init__()
        self._answers = answers

    def on_receive(self, message):
        for answer in self._answers:
            message.reply.send(answer)


def counting_wakes(inbox):
    """Count how often the loop is woken for ``inbox``."""
    wakes = []
    loop = inbox._loop

    class Loop:
        def __getattr__(self, name):
            return getattr(loop, name)

        def call_soon_threadsafe(self, callback, *args):
            wakes.append(callback)
            return loop.call_soon_threadsafe(callback, *args)

    inbox._loop = Loop()
    return wakes


def test_items_arrive_complete_and_in_order_from_many_batches():
    async def scenario():
        inbox = Inbox()
        sender = threading.Thread(target=lambda: [inbox.send(n) for n in range(10_000)])
        sender.start()
        got = []
        while len(got) < 10_000:
            got += await inbox.next_batch(DEADLINE_S)
        sender.join()
        return got

    assert asyncio.run(scenario()) == list(range(10_000))


def test_items_of_several_threads_are_all_there():
    async def scenario():
        inbox = Inbox()
        senders = [threading.Thread(target=lambda: [inbox.send(1) for _ in range(2000)]) for _ in range(4)]
        for sender in senders:
            sender.start()
        got = 0
        while got < 8000:
            batch = await inbox.next_batch(DEADLINE_S)
            assert batch, "an item was lost"
            got += len(batch)
        return got

    assert asyncio.run(scenario()) == 8000


def test_the_loop_is_woken_once_for_a_burst():
    async def scenario():
        inbox = Inbox()
        wakes = counting_wakes(inbox)
        waiting = asyncio.ensure_future(inbox.next_batch(DEADLINE_S))
        await asyncio.sleep(0)
        # The loop stands still while another thread sends: a busy loop, seen from outside.
        sender = threading.Thread(target=lambda: [inbox.send(n) for n in range(1000)])
        sender.start()
        sender.join()
        return len(await waiting), len(wakes)

    assert asyncio.run(scenario()) == (256, 1)


def test_nobody_is_woken_while_nobody_waits():
    async def scenario():
        inbox = Inbox()
        wakes = counting_wakes(inbox)
        for n in range(1000):
            inbox.send(n)
        return len(await inbox.next_batch(DEADLINE_S)), len(wakes)

    assert asyncio.run(scenario()) == (256, 0)


def test_an_empty_inbox_counts_as_a_reply():
    """It once had a length, so whoever asked ``if reply`` dropped it, and a clean-up never answered."""

    async def scenario():
        return bool(Inbox())

    assert asyncio.run(scenario())


def test_what_piled_up_comes_in_portions_and_at_once():
    async def scenario():
        inbox = Inbox()
        for n in range(600):
            inbox.send(n)
        portions = [await inbox.next_batch(DEADLINE_S) for _ in range(3)]
        return [len(one) for one in portions], [n for one in portions for n in one], inbox.arrears

    assert asyncio.run(scenario()) == ([256, 256, 88], list(range(600)), 0)


def test_silence_gives_an_empty_batch():
    async def scenario():
        return await Inbox().next_batch(0.001)

    assert asyncio.run(scenario()) == []


def test_sending_to_a_closed_loop_raises_nothing():
    async def scenario():
        inbox = Inbox()
        inbox._waiting = True
        return inbox

    asyncio.run(scenario()).send("late")


def test_a_closed_inbox_keeps_nothing():
    async def scenario():
        inbox = Inbox()
        inbox.send(1)
        inbox.close()
        inbox.send(2)
        return inbox.take()

    assert asyncio.run(scenario()) == []


def test_ask_gives_the_answer_and_skips_what_comes_before_it():
    actor = Echo.start(Waiting("read", 1, 2), "answer")
    assert asyncio.run(ask(actor, m.GetStatus, DEADLINE_S)) == "answer"


def test_ask_raises_the_error_it_is_answered_with():
    actor = Echo.start(Failed(QueueFull("full")))
    with pytest.raises(QueueFull, match="full"):
        asyncio.run(ask(actor, m.GetStatus, DEADLINE_S))


def test_ask_does_not_wait_for_a_silent_supervisor_beyond_its_limit():
    actor = Echo.start()
    with pytest.raises(TimeoutError):
        asyncio.run(ask(actor, m.GetStatus, 0.01))


def test_ask_is_not_kept_beyond_its_limit_by_progress():
    class Chatty(pykka.ThreadingActor):
        def on_receive(self, message):
            while not self.actor_stopped.is_set() and not done.is_set():
                message.reply.send(Waiting("read"))

    done = threading.Event()
    actor = Chatty.start()
    with pytest.raises(TimeoutError):
        asyncio.run(ask(actor, m.GetStatus, 0.05))
    done.set()


def test_ask_of_a_dead_supervisor_is_unavailable():
    actor = Echo.start()
    actor.stop()
    with pytest.raises(Unavailable, match="supervisor"):
        asyncio.run(ask(actor, m.GetStatus, DEADLINE_S))


def test_a_chat_whose_supervisor_dies_ends_as_unavailable(monkeypatch):
    monkeypatch.setattr("plimsoll.http.answer.ALIVE_CHECK_S", 0.01)

    async def scenario():
        actor = Echo.start()
        async with Answer(actor, "tiny", ChatRequest([])) as answer:
            actor.stop()
            async for _ in answer.batches():
                pass

    with pytest.raises(Unavailable):
        asyncio.run(scenario())


def test_an_ending_that_nobody_has_taken_yet_still_prevents_the_cancel():
    told = []

    class Recording(pykka.ThreadingActor):
        def on_receive(self, message):
            told.append(message)
            if isinstance(message, m.Chat):
                message.reply.send(Delta("a", 1))
                message.reply.send(Finished("stop", Usage()))

    async def scenario(actor):
        async with Answer(actor, "tiny", ChatRequest([])):
            await asyncio.get_running_loop().run_in_executor(None, actor.proxy().actor_urn.get)

    actor = Recording.start()
    asyncio.run(scenario(actor))
    actor.stop()
    assert [type(message) for message in told] == [m.Chat]


def test_the_standard_library_s_http_can_be_imported_in_the_repo_root():
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", "import http.client, http.server"], cwd=root, check=True)


def test_the_front_end_imports_no_mlx_and_no_numpy():
    code = (
        "import sys, plimsoll.http.server, plimsoll.cli\n"
        "print([n for n in ('mlx', 'mlx_lm', 'numpy', 'transformers', 'huggingface_hub') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_two_requests_that_one_error_ends_raise_two_errors():
    shared = QueueFull("full", retry_after_s=2.0, param="messages", details={"a": 1})

    async def scenario(actor):
        raised = []
        for _ in range(2):
            with pytest.raises(QueueFull) as caught:
                await ask(actor, m.GetStatus, DEADLINE_S)
            raised.append(caught.value)
        return raised

    actor = Echo.start(Failed(shared))
    first, second = asyncio.run(scenario(actor))
    actor.stop()
    assert first is not second
    assert shared.__traceback__ is None
    for error in (first, second):
        assert (error.message, error.retry_after_s, error.param, error.details) == ("full", 2.0, "messages", {"a": 1})
