"""Control groups in every shape: which limit holds, and what counts as used."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.memory.ledger import plan
from plimsoll.memory.sample import Reading
from plimsoll.memory.sources import cgroup
from plimsoll.memory.sources.cgroup import CgroupReader

GIB = 1024**3
MIB = 1024**2
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"


def read(machine: Any) -> Reading | None:
    """The one reading there is, if any."""
    (reading,) = readings(machine) or (None,)
    return reading


def readings(machine: Any) -> tuple[Reading, ...]:
    return CgroupReader(machine.proc, machine.cgroup)()


@pytest.fixture
def v2(machine: Any) -> Any:
    machine.belongs_to("0::/system.slice/plimsoll.service")
    machine.mounts(V2_MOUNT)
    return machine


@pytest.fixture
def v1(machine: Any) -> Any:
    machine.belongs_to("9:name=systemd:/", "4:cpu,cpuacct:/x", "3:memory:/docker/abc", "0::/")
    machine.mounts(V1_MOUNT)
    return machine


def test_the_units_own_limit_is_read(v2: Any) -> None:
    v2.v2("system.slice/plimsoll.service", 8 * GIB, 2 * GIB)
    assert read(v2) == Reading("cgroup", 8 * GIB, 2 * GIB)


def test_a_limit_on_an_ancestor_is_held_against_the_ancestors_use(v2: Any) -> None:
    v2.v2("system.slice/plimsoll.service", "max", 1 * GIB)
    v2.v2("system.slice", 4 * GIB, 3 * GIB)
    assert read(v2) == Reading("cgroup:/system.slice", 4 * GIB, 3 * GIB)


def test_each_limit_is_a_reading_of_its_own(v2: Any) -> None:
    v2.v2("system.slice/plimsoll.service", 2 * GIB, 1 * GIB)
    v2.v2("system.slice", 4 * GIB, 3 * GIB)
    v2.v2("", 32 * GIB, 8 * GIB)
    assert readings(v2) == (
        Reading("cgroup", 2 * GIB, 1 * GIB),
        Reading("cgroup:/system.slice", 4 * GIB, 3 * GIB),
        Reading("cgroup:/", 32 * GIB, 8 * GIB),
    )


def test_a_group_with_little_room_is_heeded_beside_a_fuller_one_with_more(v2: Any) -> None:
    """A load of 5 GiB fits into the slice, which is fuller, and not into the unit."""
    v2.v2("system.slice/plimsoll.service", 4 * GIB, 2 * GIB)
    v2.v2("system.slice", 64 * GIB, 40 * GIB)
    v2.meminfo(128 * GIB, 80 * GIB)
    sample = v2.sampler()()
    assert sample.binding.source == "cgroup:/system.slice"
    assert plan(5 * GIB, (), sample, 95.0).verdict == "never"
    assert plan(2 * GIB, (), sample, 95.0).verdict == "refuse"
    assert plan(1 * GIB, (), sample, 95.0).verdict == "load"


@pytest.mark.parametrize(
    ("limit", "high", "total"),
    [
        (8 * GIB, "max", 8 * GIB),
        (8 * GIB, None, 8 * GIB),
        (8 * GIB, 6 * GIB, 6 * GIB),
        (8 * GIB, 9 * GIB, 8 * GIB),
        ("max", 6 * GIB, 6 * GIB),
    ],
)
def test_the_line_where_the_kernel_slows_a_group_down_is_a_limit(v2: Any, limit: Any, high: Any, total: int) -> None:
    v2.v2("system.slice/plimsoll.service", limit, 5 * GIB, high=high, active_file=1 * GIB)
    assert read(v2) == Reading("cgroup", total, 4 * GIB)


def test_a_group_above_that_line_is_more_than_full(v2: Any) -> None:
    v2.v2("system.slice/plimsoll.service", 8 * GIB, 7 * GIB, high=6 * GIB)
    assert v2.sampler()().used_percent > 100


@pytest.mark.parametrize("limit", ["max", 2**63 - 4096, 2**63 - 65536, None])
def test_without_a_limit_there_is_no_reading(v2: Any, limit: Any) -> None:
    v2.v2("system.slice/plimsoll.service", limit, 1 * GIB)
    v2.v2("", None, 5 * GIB)
    assert read(v2) is None


def test_a_limit_above_the_machine_is_reported_but_does_not_bind(v2: Any) -> None:
    v2.v2("system.slice/plimsoll.service", 64 * GIB, 3 * GIB)
    sample = v2.sampler()()
    assert [reading.source for reading in sample.readings] == ["host", "cgroup"]
    assert sample.binding.source == "host"


def test_a_model_file_that_was_hashed_and_then_loaded_does_not_count(v2: Any) -> None:
    # The second read moved its pages from inactive_file to active_file.
    v2.v2("system.slice/plimsoll.service", 8 * GIB, 7 * GIB, active_file=5 * GIB, inactive_file=1 * GIB)
    assert read(v2) == Reading("cgroup", 8 * GIB, 1 * GIB)


def test_file_pages_that_must_be_written_first_count(v2: Any) -> None:
    stat = {"inactive_file": 3 * GIB, "file_dirty": 1 * GIB, "file_writeback": 512 * MIB, "slab_reclaimable": 256 * MIB}
    v2.v2("system.slice/plimsoll.service", 8 * GIB, 4 * GIB, **stat)
    assert read(v2) == Reading("cgroup", 8 * GIB, 1 * GIB + 1536 * MIB - 256 * MIB)


@given(
    current=st.integers(0, 2**50),
    stat=st.lists(st.integers(0, 2**50), min_size=5, max_size=5),
)
def test_use_stays_between_nothing_and_current(
    tmp_path_factory: pytest.TempPathFactory, current: int, stat: list[int]
) -> None:
    root = tmp_path_factory.mktemp("cg")
    (root / "self").mkdir()
    (root / "self" / "cgroup").write_text("0::/\n")
    names = ("inactive_file", "active_file", "slab_reclaimable", "file_dirty", "file_writeback")
    (root / "memory.max").write_text("1073741824\n")
    (root / "memory.current").write_text(f"{current}\n")
    (root / "memory.stat").write_text("".join(f"{name} {size}\n" for name, size in zip(names, stat, strict=True)))
    (reading,) = CgroupReader(root, root)()
    assert 0 <= reading.used <= current


def test_in_a_cgroup_namespace_the_root_is_our_group(machine: Any) -> None:
    machine.belongs_to("0::/")
    machine.mounts(V2_MOUNT)
    machine.v2("", 2 * GIB, 1 * GIB)
    assert read(machine) == Reading("cgroup", 2 * GIB, 1 * GIB)


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        pytest.param("/../..", "/../..", id="the mount shows two levels above the namespace"),
        pytest.param("/../exec", "/", id="outside the namespace that the mount shows"),
        pytest.param("/", "/..", id="the mount starts above and our name in it is unknown"),
        pytest.param("/docker/abc", "/docker/abc", id="a bind mount of our own group"),
    ],
)
def test_where_our_group_cannot_be_named_the_mount_point_stands_for_it(machine: Any, path: str, shown: str) -> None:
    machine.belongs_to(f"0::{path}")
    machine.mounts(V2_MOUNT.replace(" / /sys", f" {shown} /sys"))
    machine.v2("", 2 * GIB, 1 * GIB)
    machine.v2("exec", 1 * GIB, 1 * GIB)
    assert read(machine) == Reading("cgroup", 2 * GIB, 1 * GIB)


def test_a_bind_mount_of_a_parent_leads_to_the_rest_of_the_path(machine: Any) -> None:
    machine.belongs_to("0::/docker/abc/sub")
    machine.mounts(V2_MOUNT.replace(" / /sys", " /docker/abc /sys"))
    machine.v2("sub", 2 * GIB, 1 * GIB)
    machine.v2("", "max", 1 * GIB)
    assert read(machine) == Reading("cgroup", 2 * GIB, 1 * GIB)


def test_of_two_mounts_the_one_above_our_group_is_used(machine: Any) -> None:
    machine.belongs_to("0::/a/b")
    other = V2_MOUNT.replace(" / /sys/fs/cgroup", " /elsewhere /sys/fs/cgroup/other")
    machine.mounts(other, V2_MOUNT)
    machine.v2("other", 1 * GIB, 1 * GIB)
    machine.v2("a/b", 2 * GIB, 1 * GIB)
    assert read(machine) == Reading("cgroup", 2 * GIB, 1 * GIB)


def test_a_mount_elsewhere_is_found_with_spaces_in_its_name(machine: Any, tmp_path: Path) -> None:
    machine.cgroup = tmp_path / "my groups"
    machine.belongs_to("0::/a")
    machine.mounts(V2_MOUNT.replace("/sys/fs/cgroup", str(machine.cgroup).replace(" ", "\\040")))
    machine.v2("a", 2 * GIB, 1 * GIB)
    assert CgroupReader(machine.proc, tmp_path / "cgroup")() == (Reading("cgroup", 2 * GIB, 1 * GIB),)


def test_lines_about_other_mounts_are_passed_over(v1: Any) -> None:
    cpu = V1_MOUNT.replace("memory", "cpu")
    v1.mounts("", "22 28 0:20", "- -", "29 1 8:1 / / rw - ext4 /dev/sda1 rw", V2_MOUNT, cpu, V1_MOUNT)
    v1.v1("memory/docker/abc", 8 * GIB, 5 * GIB)
    assert read(v1) == Reading("cgroup", 8 * GIB, 5 * GIB)
    v1.belongs_to("0::/docker/abc")
    v1.mounts(V1_MOUNT, "29 1 8:1 / / rw - ext4 /dev/sda1 rw", V2_MOUNT)
    v1.v2("docker/abc", 4 * GIB, 1 * GIB)
    assert read(v1) == Reading("cgroup", 4 * GIB, 1 * GIB)


def test_a_group_that_was_removed_leaves_its_ancestors(v2: Any) -> None:
    v2.belongs_to("0::/system.slice/gone (deleted)")
    v2.v2("system.slice", 4 * GIB, 3 * GIB)
    assert read(v2) == Reading("cgroup", 4 * GIB, 3 * GIB)


def test_without_mountinfo_the_usual_places_are_looked_at(machine: Any) -> None:
    machine.belongs_to("0::/")
    machine.v2("", 2 * GIB, 1 * GIB)
    assert read(machine) == Reading("cgroup", 2 * GIB, 1 * GIB)
    machine.v2("unified", 3 * GIB, 1 * GIB)
    assert read(machine) == Reading("cgroup", 3 * GIB, 1 * GIB)
    machine.belongs_to("1:memory:/")
    machine.v1("memory", 4 * GIB, 1 * GIB)
    assert read(machine) == Reading("cgroup", 4 * GIB, 1 * GIB)


def test_v1_reads_its_own_names_and_counts_child_groups(v1: Any) -> None:
    stat = {"inactive_file": 1 * GIB, "active_file": 2 * GIB, "dirty": 256 * MIB, "writeback": 256 * MIB}
    v1.v1("memory/docker/abc", 8 * GIB, 5 * GIB, **stat)
    assert read(v1) == Reading("cgroup", 8 * GIB, 2 * GIB + 512 * MIB)


def test_v1_without_totals_takes_the_plain_figures(v1: Any) -> None:
    place = v1.v1("memory/docker/abc", 8 * GIB, 5 * GIB)
    (place / "memory.stat").write_text(f"inactive_file {GIB}\nactive_file {GIB}\ndirty 0\nwriteback 0\n")
    assert read(v1) == Reading("cgroup", 8 * GIB, 3 * GIB)


@pytest.mark.parametrize(
    "stat", ["total_inactive_file {0}\ntotal_active_file {0}\n", "inactive_file {0}\nactive_file {0}\n"]
)
def test_v1_of_an_old_kernel_names_no_unwritten_pages(v1: Any, stat: str) -> None:
    place = v1.v1("memory/docker/abc", 8 * GIB, 5 * GIB)
    (place / "memory.stat").write_text(f"cache 1\nrss 1\n{stat.format(GIB)}")
    assert read(v1) == Reading("cgroup", 8 * GIB, 3 * GIB)


@pytest.mark.parametrize(
    ("both_limit", "both_used", "used"),
    [
        pytest.param(4 * GIB, 1 * GIB, 1 * GIB, id="nothing is swapped"),
        pytest.param(4 * GIB, 3 * GIB, 3 * GIB, id="what is swapped takes from the limit"),
        pytest.param(6 * GIB, 3 * GIB, 1 * GIB, id="there is room for it beside the limit"),
        pytest.param(5 * GIB, 3 * GIB, 2 * GIB, id="there is room for half of it"),
        pytest.param(2**63 - 4096, 30 * GIB, 1 * GIB, id="no limit on both"),
    ],
)
def test_v1_counts_swap_against_a_limit_for_both(v1: Any, both_limit: int, both_used: int, used: int) -> None:
    place = v1.v1("memory/docker/abc", 4 * GIB, 1 * GIB)
    v1.write(place / "memory.memsw.limit_in_bytes", f"{both_limit}\n")
    v1.write(place / "memory.memsw.usage_in_bytes", f"{both_used}\n")
    assert read(v1) == Reading("cgroup", 4 * GIB, used)


def test_v1_heeds_a_limit_on_an_ancestor_that_cannot_be_seen(v1: Any) -> None:
    v1.v1("memory/docker/abc", 2**63 - 4096, 1 * GIB, hierarchical=4 * GIB)
    assert read(v1) == Reading("cgroup", 4 * GIB, 1 * GIB)


def test_v1_without_any_limit_gives_no_reading(v1: Any) -> None:
    v1.v1("memory/docker/abc", 2**63 - 4096, 1 * GIB)
    v1.v1("memory", 2**63 - 4096, 1 * GIB)
    assert read(v1) is None


def test_in_a_hybrid_tree_the_side_with_the_memory_controller_counts(v1: Any) -> None:
    v1.mounts(V1_MOUNT, V2_MOUNT.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified"))
    v1.v2("unified", 1 * GIB, 1 * GIB)
    v1.v1("memory/docker/abc", 8 * GIB, 5 * GIB)
    assert read(v1) == Reading("cgroup", 8 * GIB, 5 * GIB)


@pytest.mark.parametrize("membership", [(), ("0::/nowhere",), ("3:memory:/x",)], ids=["none", "v2", "v1"])
def test_no_groups_to_be_seen_is_no_failure(machine: Any, membership: tuple[str, ...]) -> None:
    machine.belongs_to(*membership)
    sample = machine.sampler()()
    assert sample.failed == ()
    assert [reading.source for reading in sample.readings] == ["host"]


@pytest.mark.parametrize("text", ["", "lots", "0", "-1", "1.5", "4 GiB", "\x00\xff"])
def test_a_limit_that_makes_no_sense_is_a_failure(v2: Any, text: str) -> None:
    v2.v2("system.slice/plimsoll.service", text, 1 * GIB)
    assert v2.sampler()().failed == ("cgroup",)


@pytest.mark.parametrize("name", ["memory.max", "memory.current", "memory.stat"])
def test_a_file_that_cannot_be_read_is_a_failure(v2: Any, name: str) -> None:
    v2.spoil(v2.v2("system.slice/plimsoll.service", 2 * GIB, 1 * GIB) / name)
    sample = v2.sampler()()
    assert sample.failed == ("cgroup",)
    assert sample.binding.source == "host"


@pytest.mark.parametrize("name", ["memory.current", "memory.stat"])
def test_a_limit_without_figures_is_a_failure(v2: Any, name: str) -> None:
    place = v2.v2("system.slice/plimsoll.service", 2 * GIB, 1 * GIB)
    (place / name).unlink()
    assert v2.sampler()().failed == ("cgroup",)
    (place / name).write_text("nonsense")
    assert v2.sampler()().failed == ("cgroup",)


def test_a_membership_that_makes_no_sense_is_a_failure(machine: Any) -> None:
    machine.belongs_to("gibberish")
    assert machine.sampler()().failed == ("cgroup",)
    machine.spoil(machine.proc / "self" / "cgroup")
    assert machine.sampler()().failed == ("cgroup",)


def test_figures_are_fresh_at_every_read(v2: Any) -> None:
    reader = CgroupReader(v2.proc, v2.cgroup)
    v2.v2("system.slice/plimsoll.service", 8 * GIB, 2 * GIB)
    assert reader() == (Reading("cgroup", 8 * GIB, 2 * GIB),)
    v2.v2("system.slice/plimsoll.service", 4 * GIB, 3 * GIB)
    assert reader() == (Reading("cgroup", 4 * GIB, 3 * GIB),)
    v2.v2("system.slice/plimsoll.service", "max", 3 * GIB)
    assert reader() == ()


def test_a_process_that_is_moved_is_followed(v2: Any) -> None:
    reader = CgroupReader(v2.proc, v2.cgroup)
    v2.v2("system.slice/plimsoll.service", 8 * GIB, 2 * GIB)
    v2.v2("other", 4 * GIB, 1 * GIB)
    assert reader() == (Reading("cgroup", 8 * GIB, 2 * GIB),)
    v2.belongs_to("0::/other")
    assert reader() == (Reading("cgroup", 4 * GIB, 1 * GIB),)


@given(st.text(max_size=200), st.text(max_size=200))
def test_odd_texts_end_in_a_tree_or_a_value_error(
    tmp_path_factory: pytest.TempPathFactory, membership: str, mountinfo: str
) -> None:
    root = tmp_path_factory.getbasetemp()
    try:
        tree = cgroup.find(membership, mountinfo, root)
    except ValueError:
        return
    assert tree is None or tree.folders
