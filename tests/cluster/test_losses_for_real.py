"""Nodes that go and come: real ones of Ray, killed like machines that lose their power."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# Long enough to be running whatever the machine does meanwhile.
LONG = "fake:hold=320MiB,tokens_per_s=20,answer=word,length=40"


def test_a_killed_nodes_answers_go_on_elsewhere(cluster_server: Any, ray_cluster: Any) -> None:
    said = "hold=320MiB,tokens_per_s=10,answer=one two three four,length=100"
    entries = {name: {"source": f"fake:{said},load_s=0.{ord(name)}"} for name in "abc"}
    server = cluster_server(models={"entries": entries})
    with ThreadPoolExecutor(4) as threads:
        answers = [threads.submit(server.says, name) for name in "abcc"]
        server.until(lambda: _full(server.nodes(), 3) and all(server.nodes().values()), "models on both nodes")
        server.until(lambda: _busy(server) == 3, "running answers of all models")
        ray_cluster.two.kill()
        assert {answer.result() for answer in answers} == {" ".join(["one two three four"] * 25)}


def test_without_patience_a_killed_node_ends_its_answers_and_its_models_come_back_where_they_fit(
    cluster_server: Any, ray_cluster: Any
) -> None:
    entries = {name: {"source": f"{LONG}{ord(name)}"} for name in "abcd"}
    server = cluster_server(models={"entries": entries}, memory={"patience": 0})
    streams, lines = {}, {}
    for name in entries:
        streams[name] = server.stream(name)
        lines[name] = streams[name].__enter__().iter_lines()
        next(line for line in lines[name] if '"content":"word"' in line)
    before = server.until(lambda: _full(server.nodes(), 4), "four models on two nodes")
    ray_cluster.two.kill()
    for name in before["two"]:
        error = next(line for line in lines[name] if '"error"' in line)
        text = json.loads(error.removeprefix("data: "))["error"]["message"]
        assert text.startswith("the node two, which ran this answer, was lost: ")
        assert text.endswith("; send the request again")
    back = server.until(lambda: _full(server.nodes(), 3), "one of the lost models on the other node")
    (left_out,) = set(entries) - set(back["one"])
    (came_back,) = set(back["one"]) - set(before["one"])
    streams["again"] = server.stream(came_back)
    lines["again"] = streams["again"].__enter__().iter_lines()
    next(line for line in lines["again"] if '"content":"word"' in line)
    server.until(lambda: _busy(server) == 3, "a running answer of each model")
    refused = server.chat(left_out)
    assert refused.status_code == 503
    error = refused.json()["error"]
    assert error["code"] == "insufficient_memory"
    (reason,) = error["memory"]["reasons"]
    assert reason.startswith("one has 0.")
    assert "of the 0.7 GiB needed" in reason
    assert "is busy" in reason
    for name in before["one"]:
        assert "word" in next(line for line in lines[name] if line.startswith("data: "))
    for stream in streams.values():
        stream.__exit__(None, None, None)

    ray_cluster.start_two()
    server.until(lambda: len(server.nodes()) == 2, "the node that came")
    assert server.chat(left_out, max_tokens=2).status_code == 200


def _busy(server: Any) -> int:
    return sum(model["state"] == "busy" for model in server.http.get("/admin/models").json()["models"])


def _full(nodes: dict[str, list[str]], count: int) -> dict[str, list[str]] | None:
    return nodes if sum(len(models) for models in nodes.values()) == count else None


def test_a_request_without_a_token_is_answered_by_another_node(cluster_server: Any, ray_cluster: Any) -> None:
    entries = {name: {"source": f"fake:hold=320MiB,prefill_s=4.{ord(name)}"} for name in "abc"}
    server = cluster_server(models={"entries": entries})
    with ThreadPoolExecutor(3) as threads:
        answers = [threads.submit(server.says, name, f"from {name}") for name in entries]
        server.until(lambda: _full(server.nodes(), 3) and all(server.nodes().values()), "models on both nodes")
        ray_cluster.two.kill()
        assert [answer.result() for answer in answers] == [f"from {name}" for name in entries]
