"""Claims on the memory for KV caches, without MLX."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.engine.kv_budget import FIRST_TOKENS, LEAST_TOKENS, STEP_TOKENS, KvBudget, KvCost, Wish

PLAIN = KvCost(((100, None),))
CHUNK = 64


def budget_for(tokens, cost=PLAIN, context=100_000):
    """Room for one request of so many tokens, the allocation step not counted."""
    return KvBudget(cost.sequence_bytes(tokens + STEP_TOKENS), cost, context=context, chunk=CHUNK)


def limited(prompt, answer):
    return Wish(prompt, answer, open_ended=False)


def open_ended(prompt, room=50_000):
    return Wish(prompt, room, open_ended=True)


def test_it_needs_no_mlx():
    code = "import sys, plimsoll.engine.kv_budget; sys.exit('mlx' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- what a sequence costs


def test_a_sliding_window_stops_growing_and_a_state_never_grows():
    cost = KvCost(((100, None), (40, 1000)), fixed_bytes=7)
    assert cost.sequence_bytes(10) == 7 + 1400
    assert cost.sequence_bytes(5000) == 7 + 500_000 + 40_000


def test_a_request_claims_prompt_answer_and_one_allocation_step():
    budget = budget_for(5000)
    assert budget.join(1, limited(1000, 500)) == 500
    assert budget.claimed_bytes == (1500 + STEP_TOKENS) * 100


def test_every_request_counts_as_the_longest_one():
    budget = budget_for(50_000)
    budget.join(1, limited(100, 100))
    budget.join(2, limited(10_000, 100))
    assert budget.claimed_bytes == 2 * (10_100 + STEP_TOKENS) * 100
    budget.leave(2)
    assert budget.claimed_bytes == (200 + STEP_TOKENS) * 100


def test_a_short_answer_claims_the_chunk_that_its_prompt_is_padded_to():
    budget = budget_for(5000)
    budget.join(1, limited(1000, 1))
    assert budget.claimed_bytes == (1000 + CHUNK + STEP_TOKENS) * 100


def test_what_nobody_claims_is_for_stored_caches():
    budget = budget_for(5000)
    assert budget.spare_bytes == (5000 + STEP_TOKENS) * 100
    budget.join(1, limited(1000, 1000))
    assert budget.spare_bytes == 3000 * 100


def test_no_bytes_are_no_bound():
    budget = KvBudget(0, PLAIN, context=1 << 20, chunk=CHUNK)
    for key in range(100):
        wish = limited(1 << 19, 1 << 19)
        assert budget.never(wish) is None
        assert budget.fits(wish)
        budget.join(key, wish)
    assert budget.spare_bytes > 1 << 60


# ---- what fits


def test_what_does_not_fit_now_fits_when_others_have_left():
    budget = budget_for(4000)
    budget.join(1, limited(1000, 1000))
    wish = limited(1500, 1000)
    assert not budget.fits(wish)
    assert budget.never(wish) is None
    budget.leave(1)
    assert budget.fits(wish)


def test_max_tokens_that_never_fit_are_refused_with_what_would():
    budget = budget_for(4000)
    assert budget.never(limited(1000, 3000)) is None
    sentence = budget.never(limited(1000, 3001))
    assert "prompt of 1000 tokens and an answer of 3001 need 0.4 MiB" in sentence
    assert "granted 0.4 MiB" in sentence
    assert "With this prompt 3000 tokens of answer fit: lower max_tokens, shorten the messages" in sentence
    assert "raise engine.kv_budget" in sentence


def test_a_prompt_that_never_fits_is_to_be_shortened():
    budget = budget_for(4000)
    sentence = budget.never(open_ended(3999))
    assert f"an answer of {LEAST_TOKENS} need" in sentence
    assert "Shorten the messages, or raise" in budget.never(limited(4000, 10))


def test_an_open_ended_request_begins_small_and_grows_to_the_end_of_the_context():
    budget = budget_for(100_000)
    wish = open_ended(1000, room=3000)
    granted = [budget.join(1, wish)]
    while granted[-1] < 3000:
        granted.append(budget.grow(1))
    assert granted == [*range(FIRST_TOKENS, 3000, STEP_TOKENS), 3000]
    assert budget.grow(1) == 3000


def test_growing_stops_where_memory_ends():
    budget = budget_for(1000 + FIRST_TOKENS + 2 * STEP_TOKENS + 10)
    assert budget.join(1, open_ended(1000)) == FIRST_TOKENS
    assert [budget.grow(1) for _ in range(3)] == [FIRST_TOKENS + STEP_TOKENS, *[FIRST_TOKENS + 2 * STEP_TOKENS] * 2]


def test_growing_up_to_a_longer_neighbour_takes_nothing():
    budget = KvBudget(2 * (5000 + STEP_TOKENS) * 100, PLAIN, context=100_000, chunk=CHUNK)
    budget.join(1, limited(4000, 1000))
    budget.join(2, open_ended(100))
    assert budget.spare_bytes == 0
    assert budget.grow(2) == FIRST_TOKENS + STEP_TOKENS


def test_an_open_ended_request_takes_what_ever_fits_if_that_is_worth_beginning():
    budget = budget_for(1000 + LEAST_TOKENS)
    assert budget.never(open_ended(1000)) is None
    assert budget.join(1, open_ended(1000)) == LEAST_TOKENS
    assert budget_for(1000 + LEAST_TOKENS - 1).never(open_ended(1000)) is not None
    assert budget_for(1000 + CHUNK).never(open_ended(1000, room=20)) is None  # the rest of the context


def test_a_wait_in_vain_is_explained():
    budget = budget_for(4000)
    budget.join(1, limited(2000, 1000))
    sentence = budget.waited(limited(100, 100))
    assert "With this request 2 answers would need 0.6 MiB of KV cache" in sentence
    assert "this model was granted 0.4 MiB" in sentence


costs = st.builds(
    KvCost,
    st.lists(st.tuples(st.integers(1, 5000), st.none() | st.integers(1, 5000)), min_size=1, max_size=3).map(tuple),
    st.integers(0, 10**6),
)
wishes = st.builds(Wish, st.integers(1, 5000), st.integers(1, 5000), st.booleans())


@given(
    costs,
    st.integers(1, 10**8),
    st.lists(st.tuples(st.sampled_from(["join", "grow", "leave"]), st.integers(0, 5), wishes), max_size=40),
)
def test_claims_never_pass_the_limit(cost, limit, moves):
    budget = KvBudget(limit, cost, context=10_000, chunk=CHUNK)
    running = {}
    for move, key, wish in moves:
        if move == "join" and key not in running and budget.never(wish) is None:
            assert running or budget.fits(wish), "what is not refused fits alone, or it would wait for ever"
            if budget.fits(wish):
                running[key] = (wish, budget.join(key, wish))
        elif move == "grow" and key in running:
            asked, before = running[key]
            running[key] = (asked, budget.grow(key))
            assert before <= running[key][1]
        elif move == "leave" and key in running:
            budget.leave(key)
            del running[key]
        for asked, granted in running.values():
            assert 1 <= granted <= asked.answer
            assert asked.open_ended or granted == asked.answer
        longest = max((asked.prompt + granted for asked, granted in running.values()), default=0)
        assert len(running) * cost.sequence_bytes(longest) <= budget.claimed_bytes <= limit


@pytest.mark.parametrize("answer", [1, 64, 65, 255, 256, 257, 3000])
def test_what_is_said_to_fit_is_granted_exactly(answer):
    cost = KvCost(((100, None), (300, 700)), fixed_bytes=11)
    budget = budget_for(1000 + max(answer, CHUNK), cost)
    assert budget.never(limited(1000, max(answer, CHUNK))) is None
    assert budget.never(limited(1000, max(answer, CHUNK) + 1)) is not None
