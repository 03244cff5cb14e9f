"""Ray's own memory monitor, which would kill a node's process with all its models, is warned of."""

from typing import Any

import pytest

from plimsoll.cluster.node_server import VARIABLE, warning


@pytest.mark.parametrize("value", [None, "", "250", "off"])
def test_a_monitor_that_is_not_switched_off_is_a_sentence_that_says_how(value: str | None) -> None:
    environment = {} if value is None else {VARIABLE: value}
    said = warning(environment, "linux")
    assert "at 95% of the machine's memory it may kill the node's process" in said
    assert said.endswith("start Ray there with RAY_memory_monitor_refresh_ms=0 ray start ...")


def test_another_threshold_is_the_figure_in_the_sentence() -> None:
    assert "at 80% of" in warning({"RAY_memory_usage_threshold": "0.8"}, "linux")


@pytest.mark.parametrize(("value", "platform"), [("0", "linux"), ("250", "darwin"), (None, "darwin")])
def test_nothing_is_said_where_it_is_off_or_where_ray_has_none(value: str | None, platform: str) -> None:
    assert not warning({} if value is None else {VARIABLE: value}, platform)


def test_the_head_warns_of_the_node_whose_monitor_is_on_and_of_no_other(cluster_server: Any, ray_cluster: Any) -> None:
    server = cluster_server(models={"entries": {"a": {"source": "fake:"}}})
    three = ray_cluster.start("three", 600, **{VARIABLE: "250"})
    try:
        server.until(lambda: "three" in server.nodes(), "the node with a monitor")
        warned = [line for line in server.log.read_text().splitlines() if "Ray's memory monitor is on" in line]
        assert ["the node three: " in line for line in warned] == [True]
    finally:
        three.kill()
