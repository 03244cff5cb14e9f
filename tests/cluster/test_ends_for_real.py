"""However the head ends, no worker is left on any node."""

import signal
from typing import Any

import pytest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_head_that_ends_leaves_no_worker(cluster_server: Any, workers: Any, number: int) -> None:
    server = cluster_server(
        models={"entries": {name: {"source": f"fake:hold=320MiB,length={ord(name)}"} for name in "abc"}}
    )
    for name in "abc":
        server.says(name)
    server.until(lambda: all(server.nodes().values()), "a model on each node")
    assert len(workers()) == 3
    server.child.send_signal(number)
    code = server.child.wait(60)
    assert code == (0 if number == signal.SIGTERM else -number)
    server.until(lambda: not workers(), "no worker")


def test_a_client_that_leaves_ends_its_answer_on_the_node(cluster_server: Any) -> None:
    server = cluster_server(models={"entries": {"a": {"source": "fake:tokens_per_s=50,answer=word,length=4000"}}})
    with server.stream("a") as answer:
        lines = answer.iter_lines()
        next(line for line in lines if "word" in line)
        server.until(lambda: _active(server) == 1, "the running answer")
    server.until(lambda: _active(server) == 0, "no running answer")


def _active(server: Any) -> int:
    (model,) = server.http.get("/admin/models").json()["models"]
    count: int = model["active"]
    return count
