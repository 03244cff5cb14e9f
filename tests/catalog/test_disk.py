"""Disk work: a disk that hangs here is a function that waits for an event."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from plimsoll.catalog.disk import LATE_S, Disk, DiskSilent, Place

DEADLINE_S = 60.0


class Clock:
    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


class Dead:
    """Work that never ends until the test does; counts the threads that it holds."""

    def __init__(self) -> None:
        self.comes_back = threading.Event()
        self.held = 0

    def __call__(self) -> str:
        self.held += 1
        self.comes_back.wait(DEADLINE_S)
        return "late"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def disk(clock: Clock) -> Disk:
    return Disk(clock)


@pytest.fixture
def dead() -> Iterator[Dead]:
    made = Dead()
    yield made
    made.comes_back.set()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_what_is_read_is_answered_and_what_is_raised_is_raised(disk: Disk) -> None:
    assert disk.ask(Place("/a/b", "/a"), lambda: 3).result(DEADLINE_S) == 3
    with pytest.raises(ValueError, match="broken"):
        disk.ask(Place("/a/b", "/a"), lambda: int("broken")).result(DEADLINE_S)


def test_a_folder_that_hangs_holds_up_no_other(disk: Disk, dead: Dead) -> None:
    for number in range(100):
        disk.ask(Place(f"/dead/{number}", "/dead"), dead)
    assert disk.ask(Place("/well/a", "/well"), lambda: 1).result(DEADLINE_S) == 1


def test_a_file_that_hangs_holds_up_no_other_of_its_folder(disk: Disk, dead: Dead, clock: Clock) -> None:
    disk.ask(Place("/a/dead", "/a"), dead)
    clock.at += LATE_S + 1
    assert disk.ask(Place("/a/well", "/a"), lambda: 1).result(DEADLINE_S) == 1


def test_what_hangs_takes_one_thread_however_often_it_is_asked_for(disk: Disk, dead: Dead, clock: Clock) -> None:
    disk.ask(Place("/a/dead", "/a"), dead)
    clock.at += LATE_S + 1
    for _ in range(1000):
        with pytest.raises(DiskSilent, match="/a/dead has not answered for 6 s; look at the disk"):
            disk.ask(Place("/a/dead", "/a"), dead).result(0)
    assert dead.held == 1


def test_a_file_that_hangs_takes_one_thread_also_while_its_silence_is_young(disk: Disk, dead: Dead) -> None:
    asked = [disk.ask(Place("/a/dead", "/a"), dead) for _ in range(50)]
    assert disk.ask(Place("/a", "/a"), lambda: 1).result(DEADLINE_S) == 1
    assert dead.held == 1
    dead.comes_back.set()
    assert [one.result(DEADLINE_S) for one in asked] == ["late"] * 50


def test_a_dead_folder_takes_few_threads_however_much_is_on_it(disk: Disk, dead: Dead, clock: Clock) -> None:
    for number in range(100):
        disk.ask(Place(f"/a/{number}", "/a"), dead)
    clock.at += LATE_S + 1
    with pytest.raises(DiskSilent):
        disk.ask(Place("/a/other", "/a"), dead).result(0)
    assert dead.held <= 8


def test_where_the_folder_itself_hangs_nothing_in_it_is_asked(disk: Disk, dead: Dead, clock: Clock) -> None:
    disk.ask(Place("/a", "/a"), dead)
    clock.at += LATE_S + 1
    with pytest.raises(DiskSilent):
        disk.ask(Place("/a/b", "/a"), dead).result(0)
    assert dead.held == 1


def test_a_disk_that_comes_back_is_read_again_and_what_waited_is_done(disk: Disk, dead: Dead, clock: Clock) -> None:
    asked = [disk.ask(Place(f"/a/{number}", "/a"), dead) for number in range(20)]
    clock.at += LATE_S + 1
    assert disk.silent()
    dead.comes_back.set()
    assert [one.result(DEADLINE_S) for one in asked] == ["late"] * 20
    until(lambda: disk.silent() == {})
    assert disk.ask(Place("/a/b", "/a"), lambda: 1).result(DEADLINE_S) == 1


def test_who_waits_for_an_answer_waits_so_long(disk: Disk, dead: Dead) -> None:
    with pytest.raises(DiskSilent, match=r"/a/b has not answered for 0 s"):
        disk.answer(Place("/a/b", "/a"), dead, 0.01)


def test_a_time_limit_of_the_file_system_is_its_own_error(disk: Disk) -> None:
    def share_gives_up() -> None:
        raise TimeoutError(110, "Connection timed out")

    with pytest.raises(TimeoutError, match="Connection timed out"):
        disk.answer(Place("/a/b", "/a"), share_gives_up, DEADLINE_S)
