"""``plimsoll serve --cluster`` over two real nodes of Ray on this machine."""

from typing import Any


def test_models_that_do_not_fit_one_node_serve_at_the_same_time(cluster_server: Any) -> None:
    entries = {name: {"source": f"fake:hold=320MiB,length={ord(name)}"} for name in "abcde"}
    server = cluster_server(models={"entries": entries})
    for name in entries:
        assert server.says(name, f"from {name}") == f"from {name}"
    nodes = server.until(lambda: _full(server.nodes(), 5), "all five models")
    assert (len(nodes["one"]), len(nodes["two"])) == (3, 2)
    for name in entries:
        assert server.says(name, f"again from {name}") == f"again from {name}"
    assert server.nodes() == nodes


def _full(nodes: dict[str, list[str]], count: int) -> dict[str, list[str]] | None:
    return nodes if sum(len(models) for models in nodes.values()) == count else None
