"""The prefix store: what is put together again is what was read, whatever left meanwhile."""

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    ConcatenateKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
)

from plimsoll.engine.chat.prefix_store import prefix_store as store_module
from plimsoll.engine.chat.prefix_store.pieces import SPARE_TOKENS, Row, is_plain, leaves
from plimsoll.engine.chat.prefix_store.prefix_store import PrefixStore
from plimsoll.engine.chat.prefix_store.tree import BLOCK_TOKENS

PLENTY = 1 << 30
WINDOW = 48
N = BLOCK_TOKENS


class Reader:
    """A model without weights: what its caches hold of a token depends on the token and on all before it."""

    def __init__(self, *kinds):
        self.kinds = kinds

    def caches(self):
        return [kind() for kind in self.kinds]

    def read(self, tokens, caches=None, before=0, chunk=200):
        caches = caches or self.caches()
        state = 0
        for start in range(0, len(tokens), chunk):
            values = []
            for token in tokens[start : start + chunk]:
                state = (state * 31 + token + 1) % 100_003
                values.append(float(state))
            if start + chunk <= before:
                continue
            fresh = values[max(0, before - start) :]
            for depth, leaf in enumerate(leaves(caches)):
                _feed(leaf, fresh, depth)
        return caches


def _feed(leaf, values, depth):
    if isinstance(leaf, ArraysCache):
        old = leaf[0] if leaf[0] is not None else mx.zeros((1, 3))
        leaf[0] = mx.concatenate([old, mx.array([values])], axis=1)[:, -3:]
        return
    width = 64 if isinstance(leaf, QuantizedKVCache) else 4
    keys = mx.array(values)[None, None, :, None] + mx.arange(width)[None, None, None] + depth
    keys = mx.contiguous(mx.broadcast_to(keys, (1, 2, len(values), width)))
    empty_values = depth % 2 and width == 4  # as models with latent attention have them
    leaf.update_and_fetch(keys, keys[..., :0] if empty_values else -keys)
    if isinstance(leaf, ChunkedKVCache):
        leaf.maybe_trim_front()


def seen(caches):
    """What the next token would see of the caches."""
    found = []
    for leaf in leaves(caches):
        if isinstance(leaf, ArraysCache):
            found.append((type(leaf).__name__, [None if one is None else one.tolist() for one in leaf.cache]))
            continue
        if leaf.keys is None:
            found.append((type(leaf).__name__, None))
            continue
        kept = leaf.keys_and_values()
        if isinstance(leaf, RotatingKVCache):
            last = min(leaf.offset, leaf.max_size)
            kept = [leaf._temporal_order(one)[..., -last:, :] for one in (leaf.keys, leaf.values)]
        flat = [one for part in kept for one in (part if isinstance(part, tuple) else (part,))]
        found.append((type(leaf).__name__, leaf.offset, [(one.shape, one.tolist()) for one in flat]))
    return found


PLAIN = Reader(KVCache, KVCache)
MODELS = {
    "plain": PLAIN,
    "no cache at all": Reader(ConcatenateKVCache),
    "quantized": Reader(lambda: QuantizedKVCache(group_size=32, bits=8)),
    "windows": Reader(lambda: RotatingKVCache(WINDOW), KVCache),
    "windows only": Reader(lambda: RotatingKVCache(WINDOW)),
    "recurrent": Reader(lambda: ArraysCache(1)),
    "recurrent with an empty place": Reader(lambda: ArraysCache(2), KVCache),
    "chunks": Reader(lambda: ChunkedKVCache(WINDOW), KVCache),
    "nested": Reader(lambda: CacheList(KVCache(), KVCache()), lambda: CacheList(ArraysCache(1), KVCache())),
}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]


def opened(model, budget=PLENTY):
    return PrefixStore(model.caches, budget)


def put(store, model, tokens):
    return store.put(tokens, Row(model.read(tokens)))


def check(store, model, tokens):
    """What the store gives for a prompt is what reading its beginning gives; returns how much that is."""
    beginning = store.find(tokens).held
    assert beginning.length < len(tokens)
    if beginning.length:
        given_ = store.take(beginning)
        assert seen(given_) == seen(model.read(tokens[: beginning.length]))
    return beginning.length


def text(length, seed=0):
    return [(7 * index + seed * index * index + seed) % 251 for index in range(length)]


def test_the_same_prompt_again_is_known_but_for_its_last_token(model):
    store, tokens = opened(model), text(2 * N + 30)
    put(store, model, tokens[:-1])
    assert check(store, model, tokens) == len(tokens) - 1


def test_what_goes_on_behind_a_known_prompt_begins_with_it(model):
    store, tokens = opened(model), text(3 * N)
    put(store, model, tokens)
    longer = [*tokens, *text(2 * N, 3)]
    assert check(store, model, longer) == len(tokens)
    put(store, model, longer)
    assert check(store, model, [*longer, 1]) == len(longer)


def test_a_plain_model_begins_at_any_token():
    store, tokens = opened(PLAIN), text(3 * N)
    put(store, PLAIN, tokens)
    for common in (1, 5, N - 1, N, N + 1, 2 * N + 7, 3 * N - 1):
        assert check(store, PLAIN, [*tokens[:common], 999, 998]) == common
        assert store.find([*tokens[:common], 999, 998]).common == common


def test_a_window_that_holds_the_whole_text_begins_at_any_token_and_a_longer_one_a_little_earlier():
    model = MODELS["windows"]
    store = opened(model)
    tokens = text(WINDOW)
    put(store, model, tokens)
    assert check(store, model, [*tokens[:20], 999, 998]) == 20
    longer = text(600, 2)  # the last chunk is longer than the spare tokens
    put(store, model, longer)
    early = len(longer) - SPARE_TOKENS
    assert check(store, model, [*longer[:early], 999, 998]) == early
    assert check(store, model, [*longer[: early - 1], 999, 998]) == 0


def test_a_state_serves_its_own_position_only():
    model = MODELS["recurrent"]
    store, tokens = opened(model), text(N + 9)
    put(store, model, tokens)
    assert check(store, model, [*tokens, 1]) == len(tokens)
    assert check(store, model, [*tokens[:-1], 250, 251]) == 0
    assert store.find([*tokens[:-1], 250, 251]).common == len(tokens) - 1


def test_what_conversations_have_in_common_is_there_once():
    store, system = opened(PLAIN), text(16 * N)
    put(store, PLAIN, system)
    one_copy = store.nbytes
    for client in range(10):
        tokens = [*system, *text(N // 2, client + 1)]
        put(store, PLAIN, tokens)
        assert check(store, PLAIN, [*tokens, 1]) == len(tokens)
    assert store.nbytes <= 1.5 * one_copy


def test_conversations_above_the_budget_keep_their_beginning():
    store, tokens = opened(PLAIN), text(8 * N)
    put(store, PLAIN, tokens)
    budget = store.nbytes // 2
    store = opened(PLAIN, budget)
    assert put(store, PLAIN, tokens) == 4 * N
    assert check(store, PLAIN, tokens) == 4 * N
    assert store.nbytes <= budget


def test_a_snapshot_that_does_not_fit_pushes_nothing_out():
    model = MODELS["windows"]
    small, large = text(N), text(8 * N, 5)
    store = opened(model)
    put(store, model, small)
    store = opened(model, 2 * store.nbytes)
    put(store, model, small)
    assert put(store, model, large) == 0
    assert check(store, model, [*small, 1]) == len(small)


def test_the_least_recently_used_leave_first():
    one, two, three = (text(2 * N, seed) for seed in (1, 2, 3))
    store = opened(PLAIN)
    put(store, PLAIN, one)
    store.set_budget(2 * store.nbytes)
    put(store, PLAIN, two)
    check(store, PLAIN, [*one, 1])
    put(store, PLAIN, three)
    assert check(store, PLAIN, [*one, 1]) == len(one)
    assert check(store, PLAIN, [*three, 1]) == len(three)
    assert check(store, PLAIN, [*two, 1]) == 0


def test_the_budget_may_shrink_at_any_time(model):
    store = opened(model)
    for seed in range(4):
        put(store, model, text(2 * N + 10 * seed, seed))
    before = store.nbytes
    store.set_budget(before // 3)
    assert store.nbytes <= before // 3
    for seed in range(4):
        check(store, model, [*text(2 * N + 10 * seed, seed), 1])
    store.set_budget(PLENTY)
    given_back = store.shrink(1)
    assert given_back >= min(1, before // 3)
    store.clear()
    assert (store.nbytes, len(store)) == (0, 0)
    assert list(store.tree) == []


def test_pieces_do_not_hold_what_they_were_cut_from():
    model = Reader(KVCache)
    caches = model.caches()
    keys = mx.zeros((1, 1, 64 * N, 64))
    caches[0].update_and_fetch(keys, keys)
    mx.eval(caches[0].state)
    before = mx.get_active_memory()
    store = opened(model, caches[0].nbytes // 8)
    store.put(text(64 * N), Row(caches))
    assert store.nbytes <= mx.get_active_memory() - before + 64 * N * 40 <= caches[0].nbytes // 8 + 64 * N * 40
    del caches, keys


def test_what_was_handed_out_may_be_written_to():
    for model in MODELS.values():
        store, tokens = opened(model), text(N + 20)
        put(store, model, tokens)
        found = store.find([*tokens, 1])
        caches = store.take(found.held)
        model.read([*tokens, *text(70, 4)], caches, before=found.held.length)
        mx.eval([leaf.state for leaf in leaves(caches) if not isinstance(leaf, ArraysCache)])
        assert check(store, model, [*tokens, 1]) == len(tokens)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(sorted(MODELS)),
    budget=st.sampled_from([PLENTY, 60_000, 20_000]),
    turns=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 300), st.integers(1, 3), st.integers(1, 150)), max_size=8
    ),
)
def test_whatever_is_put_and_whatever_leaves_the_beginning_is_right(kind, budget, turns):
    model = MODELS[kind]
    store = opened(model, budget)
    told = [[]]
    for base, shared, seed, more in turns:
        tokens = [*told[base % len(told)][:shared], *text(more, seed)]
        check(store, model, [*tokens, 1])
        put(store, model, tokens)
        assert store.nbytes <= budget
        told.append(tokens)
    for tokens in told[1:]:
        length = check(store, model, [*tokens, 1])
        assert budget < PLENTY or length == len(tokens)
    pieces = list(store.newest_first())
    assert store.nbytes == sum(piece.size for piece in pieces)
    assert {block.number for block in store.tree if block.arrays is not None} <= {piece.number for piece in pieces}
    store.clear()
    assert not list(store.tree)


def test_new_pieces_are_computed_in_portions(monkeypatch):
    portions = []
    real = store_module.mx.eval
    monkeypatch.setattr(store_module, "_EVALUATED_BYTES", 10_000)
    monkeypatch.setattr(store_module.mx, "eval", lambda arrays: (portions.append(len(arrays)), real(arrays)))
    store = opened(PLAIN)
    put(store, PLAIN, text(8 * N))
    assert len(portions) > 3


def test_what_leaves_is_evaluated_cache_by_cache_and_is_what_was_read(model):
    store = opened(model)
    tokens = text(3 * N + 5)
    assert store.put(tokens, Row(model.read(tokens)), later=True) == len(tokens)
    plain = [leaf for leaf in leaves(model.caches()) if is_plain(leaf)]
    cut_out = store.cut_out()
    assert len(cut_out) == len(plain) * bool(cut_out)
    mx.eval(cut_out)
    assert store.cut_out() == []
    check(store, model, [*tokens, 1])
