"""Whether every host of a group has room for its share, on plain data."""

from plimsoll.memory.group_memory import HostShare, emergency, refuse
from plimsoll.memory.sample import Reading

GIB = 1024**3


def share(host: str, gib: float, used: float, total: float = 100.0) -> HostShare:
    return HostShare(host, int(gib * GIB), (Reading("host", int(total * GIB), int(used * GIB)),))


def test_a_group_whose_hosts_all_stay_below_critical_is_loaded() -> None:
    assert refuse([share("a", 50, 40), share("b", 94, 1)], 95.0) is None


def test_one_full_host_refuses_the_group_by_its_name_and_figures() -> None:
    refusal = refuse([share("a", 10, 40), share("b", 60, 40)], 95.0)
    assert refusal is not None
    assert refusal.kind == "full"
    for figure in ("host b", "needs 60.0 GiB", "55.0 GiB are left", "40.0% of 100.0 GiB", "try again"):
        assert figure in refusal.sentence


def test_what_can_never_fit_is_said_before_what_does_not_fit_now() -> None:
    refusal = refuse([share("a", 60, 40), share("b", 96, 0)], 95.0)
    assert refusal is not None
    assert refusal.kind == "never"
    assert "host b needs 96.0 GiB of 100.0 GiB there" in refusal.sentence


def test_the_tightest_source_of_a_host_decides() -> None:
    readings = (Reading("host", 100 * GIB, 10 * GIB), Reading("cgroup", 20 * GIB, 12 * GIB))
    refusal = refuse([HostShare("a", 8 * GIB, readings)], 95.0)
    assert refusal is not None
    assert "cgroup" in refusal.sentence


def test_an_emergency_names_the_host_and_how_full_it_is() -> None:
    readings = [Reading("host", 100 * GIB, 98 * GIB)]
    assert emergency("mac2", readings, 98.5) == ""
    sentence = emergency("mac2", readings, 98.0)
    assert "host mac2" in sentence
    assert "98.0% of 100.0 GiB" in sentence
