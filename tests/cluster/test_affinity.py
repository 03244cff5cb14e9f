"""Who knows a conversation, by the longest beginning."""

from hypothesis import given
from hypothesis import strategies as st

from plimsoll.cluster.routing import Affinity, beginnings

SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "Because."}


def test_the_next_turn_finds_the_node_of_the_last_one() -> None:
    affinity = Affinity()
    affinity.remember(beginnings("m", [SYSTEM, ASK]), "a")
    assert affinity.find(beginnings("m", [SYSTEM, ASK, ANSWER, ASK])) == "a"


def test_the_longest_beginning_wins() -> None:
    affinity = Affinity()
    affinity.remember(beginnings("m", [SYSTEM, ASK]), "a")
    affinity.remember(beginnings("m", [SYSTEM, ASK, ANSWER, ASK]), "b")
    assert affinity.find(beginnings("m", [SYSTEM, ASK, ANSWER, ASK, ANSWER, ASK])) == "b"
    assert affinity.find(beginnings("m", [SYSTEM, ASK, ANSWER])) == "a"


def test_another_model_and_another_conversation_are_not_known() -> None:
    affinity = Affinity()
    affinity.remember(beginnings("m", [SYSTEM, ASK]), "a")
    assert affinity.find(beginnings("n", [SYSTEM, ASK])) is None
    assert affinity.find(beginnings("m", [ASK, SYSTEM])) is None
    assert affinity.find([]) is None


def test_the_order_of_keys_in_a_message_does_not_matter() -> None:
    assert beginnings("m", [ASK]) == beginnings("m", [dict(reversed(ASK.items()))])


def test_messages_can_not_run_into_each_other() -> None:
    assert beginnings("m", ["ab", "c"])[-1] != beginnings("m", ["a", "bc"])[-1]


def test_the_least_recently_used_conversation_is_forgotten_first() -> None:
    affinity = Affinity(capacity=2)
    first, second, third = ([bytes([n])] for n in range(3))
    affinity.remember(first, "a")
    affinity.remember(second, "b")
    assert affinity.find(first) == "a"
    affinity.remember(third, "c")
    assert [affinity.find(one) for one in (first, second, third)] == ["a", None, "c"]


def test_a_lost_node_knows_nothing_any_more() -> None:
    affinity = Affinity()
    affinity.remember([b"1"], "a")
    affinity.remember([b"2"], "b")
    affinity.forget("a")
    assert (affinity.find([b"1"]), affinity.find([b"2"])) == (None, "b")


MESSAGES = st.lists(st.sampled_from("abc"), max_size=5)


@given(st.lists(st.tuples(MESSAGES, st.sampled_from("xyz")), max_size=30), st.integers(1, 8), MESSAGES)
def test_it_never_outgrows_its_bound_and_finds_what_a_plain_search_would(
    seen: list[tuple[list[str], str]], capacity: int, asked: list[str]
) -> None:
    affinity = Affinity(capacity)
    order: dict[tuple[str, ...], str] = {}
    for messages, node in seen:
        affinity.remember(beginnings("m", messages), node)
        if messages:
            order.pop(tuple(messages), None)
            order[tuple(messages)] = node
        assert len(affinity) <= capacity
    kept = dict(list(order.items())[-capacity:])
    known = [tuple(asked[:count]) for count in range(len(asked), 0, -1) if tuple(asked[:count]) in kept]
    assert affinity.find(beginnings("m", asked)) == (kept[known[0]] if known else None)
