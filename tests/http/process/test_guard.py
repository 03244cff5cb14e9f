"""A server whose Supervisor can't serve any more ends with an exit code, to be started again."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import httpx
import psutil
import pytest

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Failed
from plimsoll.actors.status import Status
from plimsoll.errors import InternalError
from plimsoll.http.process import liveness
from plimsoll.memory.sample import Reading, Sample

DEADLINE_S = 60


def watched(system, seconds=DEADLINE_S):
    front = SimpleNamespace(supervisor=system.supervisor)
    return asyncio.run(asyncio.wait_for(liveness.wait_until_failed(front, 0.001, 0.05), seconds))


def test_a_supervisor_that_dies_is_noticed(system):
    system.scripts[m.GetStatus] = lambda _message: 1 / 0
    assert watched(system) == "the supervisor has died"


def test_a_supervisor_that_never_answers_is_given_a_number_of_questions(system):
    asked = []
    system.scripts[m.GetStatus] = asked.append
    assert "has not answered" in watched(system)
    assert len(asked) == 12


def test_a_supervisor_that_answers_now_and_then_or_with_an_error_is_left_alone(system):
    asked = []

    def answer(message):
        asked.append(message)
        if len(asked) % 10 == 0:
            message.reply.send(Failed(InternalError("this request failed")))
        if len(asked) % 10 == 5:
            message.reply.send(Status(0, None, [], "open", False, []))

    system.scripts[m.GetStatus] = answer
    with pytest.raises(TimeoutError):
        watched(system, 3)
    assert len(asked) > 20


@pytest.mark.parametrize("nodes", [None, ()], ids=["one machine", "a cluster's head"])
def test_what_is_known_of_this_machines_memory_is_kept_for_the_front(system, nodes):
    told = Sample(1.0, (Reading("host", 1000, 1),))
    system.scripts[m.GetStatus] = lambda asked: asked.reply.send(Status(0, told, [], "open", False, [], nodes=nodes))
    front = SimpleNamespace(supervisor=system.supervisor, sample=None)

    async def look():
        watching = asyncio.create_task(liveness.wait_until_failed(front, 0.001, 1.0))
        while front.sample is None:  # noqa: ASYNC110 - a figure, which nobody announces
            await asyncio.sleep(0.01)
        watching.cancel()

    asyncio.run(asyncio.wait_for(look(), DEADLINE_S))
    assert (front.sample == told) == (nodes is None)
    assert front.sample.readings


DIES = """
    import sys
    from plimsoll.actors.supervisor import Supervisor
    from plimsoll.cli import main

    before = Supervisor.__init__

    def init(self, *arguments, **options):
        before(self, *arguments, **options)
        from plimsoll.actors import messages as m
        self._handlers[m.LoadModel] = lambda message: self.stop()

    Supervisor.__init__ = init
    sys.argv = ["plimsoll", "serve", "--config", sys.argv[1]]
    main()
"""


def test_the_process_ends_with_70_and_takes_its_workers_along(tmp_path):
    file = tmp_path / "config.yaml"
    entries = {"tiny": {"source": "fake:"}}
    models = {"builtin": False, "cache_dir": str(tmp_path), "entries": entries}
    file.write_text(json.dumps({"server": {"port": 0, "shutdown_grace": "1s"}, "models": models}))
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(DIES), str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    try:
        url = child.stdout.readline().split()[2].partition("/v1")[0]
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
        assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=DEADLINE_S).status_code == 200
        workers = psutil.Process(child.pid).children()
        assert workers
        with contextlib.suppress(httpx.RemoteProtocolError):  # it dies of this
            httpx.post(f"{url}/admin/models/tiny/load", timeout=DEADLINE_S)
        assert child.wait(DEADLINE_S) == 70
        assert "the supervisor has died, so the server has ended" in child.stderr.read()
        assert not psutil.wait_procs(workers, DEADLINE_S)[1]
    finally:
        child.kill()
        child.communicate()
