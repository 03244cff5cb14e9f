"""Who gets a place and who gives one up, without sockets."""

import pytest

from plimsoll.http.limits.connection_slots import RESERVE, ConnectionSlots, may_use_reserve

HERE, FAR = "127.0.0.1", "192.0.2.7"


class Client:
    def __init__(self, *, idle=True):
        self.idle, self.closed = idle, False

    def is_idle(self):
        return self.idle

    def close_for_another(self):
        self.closed = True


@pytest.fixture
def clock():
    return [100.0]


@pytest.fixture
def places(clock):
    return ConnectionSlots(2, lambda: clock[0])


def entered(places, count, *, idle=True):
    clients = [Client(idle=idle) for _ in range(count)]
    assert all(places.enter(one) for one in clients)
    return clients


@pytest.mark.parametrize(
    ("path", "address", "may"),
    [
        ("/health", FAR, True),
        ("/health/live", FAR, True),
        ("/metrics", FAR, True),
        ("/admin/models", HERE, True),
        ("/admin/models", "::1", True),
        ("/admin/models", "::ffff:127.0.0.1", True),
        ("/", HERE, True),
        ("/admin/models", FAR, False),
        ("/v1/models", HERE, False),
        ("/healthy", HERE, False),
    ],
)
def test_what_the_reserve_is_for(path, address, may):
    assert may_use_reserve(path, address) is may


def test_who_came_in_time_is_served_whatever_happens_later(places):
    early = entered(places, 2, idle=False)
    (late,) = entered(places, 1)
    places.busy(late)
    assert all(places.may_request(one, "/v1/models", HERE) for one in early)
    assert not places.may_request(late, "/v1/models", HERE)
    assert places.may_request(late, "/health", HERE)


def test_who_came_too_late_is_served_once_a_place_is_free(places):
    early, _ = entered(places, 2, idle=False)
    (late,) = entered(places, 1, idle=False)
    places.leave(early)
    assert places.may_request(late, "/v1/models", HERE)
    (later,) = entered(places, 1, idle=False)
    assert not places.may_request(later, "/v1/models", HERE)


def test_the_longest_idle_makes_way_and_nobody_who_is_busy_or_has_just_come(places, clock):
    busy, first = entered(places, 2)
    places.busy(busy)
    (late,) = entered(places, 1)
    clock[0] += 0.5
    assert not places.may_request(late, "/v1/models", HERE)
    assert places.next_free_s() == 0.5
    clock[0] += 1.0
    assert places.next_free_s() == 0
    assert places.may_request(late, "/v1/models", HERE)
    assert (busy.closed, first.closed, late.closed) == (False, True, False)
    places.rest(busy)
    places.rest(late)
    clock[0] += 2.0
    (next_one,) = entered(places, 1)
    assert places.may_request(next_one, "/v1/models", HERE)
    assert (busy.closed, late.closed, places.closed_idle) == (True, False, 2)


def test_half_a_request_is_given_a_moment_and_no_more(places, clock):
    first, second = entered(places, 2)
    clock[0] += 10
    places.heard(first)
    late, later = entered(places, 2)
    assert places.may_request(late, "/v1/models", HERE)
    assert (first.closed, second.closed) == (False, True)
    places.busy(late)
    assert not places.may_request(later, "/v1/models", HERE)
    clock[0] += 1.5
    assert places.may_request(later, "/v1/models", HERE)
    assert first.closed


def test_a_full_reserve_takes_the_newest_and_lets_its_oldest_go(places):
    entered(places, 2, idle=False)
    oldest, *others = entered(places, RESERVE)
    (newest,) = entered(places, 1)
    assert (oldest.closed, newest.closed, any(one.closed for one in others)) == (True, False, False)
    assert places.taken == 2 + RESERVE


def test_nobody_enters_where_all_are_busy(places):
    for one in entered(places, 2 + RESERVE, idle=False):
        places.busy(one)
    assert not places.enter(Client())
    assert places.next_free_s() is None
    assert places.turned_away == 1
