"""``plimsoll serve --cluster`` over two real nodes of Ray on this machine."""

from typing import Any


def test_models_that_do_not_fit_one_node_serve_at_the_same_time(cluster_server: Any) -> None:
    entries = {name: {"source": "fake:hold=8MiB"} for name in ("a", "b", "c", "d", "e")}
    server = cluster_server(models={"entries": entries})
    for name in entries:
        assert server.says(name, f"from {name}") == f"from {name}"
    nodes = server.nodes()
    assert sorted(nodes["one"] + nodes["two"]) == list(entries)
