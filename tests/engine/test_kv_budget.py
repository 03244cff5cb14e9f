"""Claims on the memory for KV caches; nothing is computed."""

from hypothesis import given
from hypothesis import strategies as st

from plimsoll.engine.chat.kv_budget import STEP_TOKENS, KvBudget, KvCost, Wish, WorkingMemory

PLAIN = KvCost(((100, None),))
CHUNK = 64


def budget_for(tokens, cost=PLAIN, context=100_000):
    """Room for one request of so many tokens, the allocation step not counted."""
    return KvBudget(cost.sequence_bytes(tokens + STEP_TOKENS), cost, context=context, chunk=CHUNK)


def all_at_once(prompt, answer):
    """A wish whose first step is its whole answer."""
    return Wish(prompt, answer, answer)


# ---- what a sequence costs


def test_a_sliding_window_stops_growing_and_a_state_never_grows():
    cost = KvCost(((100, None), (40, 1000)), fixed_bytes=7)
    assert cost.sequence_bytes(10) == 7 + 1400
    assert cost.sequence_bytes(5000) == 7 + 500_000 + 40_000


def test_a_request_claims_prompt_answer_and_one_allocation_step():
    budget = budget_for(5000)
    assert budget.join(1, all_at_once(1000, 500)) == 500
    assert budget.claimed_bytes == (1500 + STEP_TOKENS) * 100


def test_every_request_counts_as_the_longest_one():
    budget = budget_for(50_000)
    budget.join(1, all_at_once(100, 100))
    budget.join(2, all_at_once(10_000, 100))
    assert budget.claimed_bytes == 2 * (10_100 + STEP_TOKENS) * 100
    budget.leave(2)
    assert budget.claimed_bytes == (200 + STEP_TOKENS) * 100


def test_a_short_answer_claims_the_chunk_that_its_prompt_is_padded_to():
    budget = budget_for(5000)
    budget.join(1, all_at_once(1000, 1))
    assert budget.claimed_bytes == (1000 + CHUNK + STEP_TOKENS) * 100


def test_what_nobody_claims_is_for_stored_caches():
    budget = budget_for(5000)
    assert budget.spare_bytes == (5000 + STEP_TOKENS) * 100
    budget.join(1, all_at_once(1000, 1000))
    assert budget.spare_bytes == 3000 * 100


def test_no_bytes_are_no_bound():
    budget = KvBudget(0, PLAIN, context=1 << 20, chunk=CHUNK)
    for key in range(100):
        wish = all_at_once(1 << 19, 1 << 19)
        assert budget.never(wish) is None
        assert budget.fits(wish)
        budget.join(key, wish)
    assert budget.spare_bytes > 1 << 60


# ---- what fits


def test_what_does_not_fit_now_fits_when_others_have_left():
    budget = budget_for(4000)
    budget.join(1, all_at_once(1000, 1000))
    wish = all_at_once(1500, 1000)
    assert not budget.fits(wish)
    assert budget.never(wish) is None
    budget.leave(1)
    assert budget.fits(wish)


def test_an_upper_bound_of_the_answer_is_no_claim():
    budget = budget_for(1000 + STEP_TOKENS)
    wish = Wish(1000, 32_000)
    assert budget.never(wish) is None
    assert budget.fits(wish)
    assert budget.join(1, wish) == STEP_TOKENS


def test_a_prompt_that_never_fits_is_refused_in_the_words_that_clients_act_on():
    budget = budget_for(4000)
    assert budget.never(Wish(4000 - STEP_TOKENS, 32_000)) is None
    sentence = budget.never(Wish(4000 - STEP_TOKENS + 1, 32_000))
    assert sentence.startswith("prompt is too long: 3745 tokens > 3744 maximum.")
    assert "maximum context length is 4000 tokens" in sentence
    assert budget.longest == 4000
    assert "raise engine.kv_budget" in sentence
    assert budget.never(Wish(4000 - CHUNK, 1)) is None


def test_what_never_fits_is_decided_by_what_the_room_may_grow_to():
    budget = KvBudget(100, PLAIN, context=100_000, chunk=CHUNK, most_bytes=(5000 + STEP_TOKENS) * 100)
    assert budget.never(Wish(4000, 1000)) is None
    assert not budget.fits(Wish(4000, 1000))
    budget.lease(budget.needed_bytes(Wish(4000, 1000)), budget.most_bytes)
    assert budget.fits(Wish(4000, 1000))
    assert budget.never(Wish(4800, 1000)) is not None


def test_an_answer_grows_by_steps_to_its_bound():
    budget = budget_for(100_000)
    wish = Wish(1000, 700)
    granted = [budget.join(1, wish)]
    while granted[-1] < 700:
        granted.append(budget.grow(1))
    assert granted == [STEP_TOKENS, 2 * STEP_TOKENS, 700]
    assert budget.grow(1) == 700


def test_growing_stops_where_memory_ends_and_says_what_it_would_take():
    budget = budget_for(1000 + 2 * STEP_TOKENS + 10)
    assert budget.join(1, Wish(1000, 5000)) == STEP_TOKENS
    assert [budget.grow(1) for _ in range(2)] == [2 * STEP_TOKENS] * 2
    assert budget.growth_bytes(1) == (1000 + 4 * STEP_TOKENS) * 100
    budget.lease(budget.growth_bytes(1), 0)
    assert budget.grow(1) == 3 * STEP_TOKENS


def test_growing_up_to_a_longer_neighbour_takes_nothing():
    budget = KvBudget(2 * (5000 + STEP_TOKENS) * 100, PLAIN, context=100_000, chunk=CHUNK)
    budget.join(1, all_at_once(4000, 1000))
    budget.join(2, Wish(100, 2000))
    assert budget.spare_bytes == 0
    assert budget.grow(2) == 2 * STEP_TOKENS


def test_what_reading_a_chunk_takes_counts_while_a_prompt_is_read():
    budget = budget_for(5000)
    budget.working.note(1000, 1000)
    budget.working.note(1000, 700)
    assert budget.claimed_bytes == 0
    assert budget.longest == 4990, "a prompt has to be read before it is answered"
    budget.join(1, Wish(1000, 1000))
    assert budget.claimed_bytes == (1000 + 2 * STEP_TOKENS) * 100 + 1000
    budget.has_read(1)
    assert budget.claimed_bytes == (1000 + 2 * STEP_TOKENS) * 100
    assert budget.needed_bytes(Wish(1000, 1000)) == 2 * (1000 + 2 * STEP_TOKENS) * 100 + 1000


def test_what_a_chunk_takes_in_a_context_that_was_never_read_is_foreseen_by_how_it_has_grown():
    working = WorkingMemory()
    assert working.bytes_at(5000) == 0
    working.note(900, 10_000)
    assert working.bytes_at(100) == working.bytes_at(8000) == 10_000, "one length says nothing of others"
    working.note(4000, 40_000)
    assert working.bytes_at(1000) == 10_000
    assert working.bytes_at(4000) == 40_000
    assert 60_000 < working.bytes_at(8000) < 120_000
    known = [working.bytes_at(tokens) for tokens in range(1, 20_000, 50)]
    assert known == sorted(known)


def test_a_denial_is_explained():
    sentence = budget_for(1000).denied(Wish(2000, 1000))
    assert "needs 0.2 MiB of KV cache and 0.1 MiB are left" in sentence


costs = st.builds(
    KvCost,
    st.lists(st.tuples(st.integers(1, 5000), st.none() | st.integers(1, 5000)), min_size=1, max_size=3).map(tuple),
    st.integers(0, 10**6),
)
wishes = st.builds(Wish, st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 600))


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
        longest = max((asked.prompt + granted for asked, granted in running.values()), default=0)
        assert len(running) * cost.sequence_bytes(longest) <= budget.claimed_bytes <= limit
