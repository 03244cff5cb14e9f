"""Prompt lookup: what is drafted and when, and that answers are the same with it as without."""

import functools
import json
from types import SimpleNamespace

import pytest
import tiny_llama
from mlx_helpers import Run, open_engine, prepare, request

from plimsoll.engine.chat.prompt_lookup import Follower, PassTimes, PromptLookup, choose_length
from plimsoll.engine.chat.row_batch import RowBatch
from plimsoll.engine.engine import Unfinished
from plimsoll.engine.protocol import Format, Sampling

# ---- what is drafted


def test_what_followed_the_same_tokens_before_is_drafted():
    follower = Follower([1, 2, 3, 4, 5, 6, 9, 1, 2, 3])
    assert follower.draft(2) == [4, 5]
    assert follower.draft(9) == [4, 5, 6, 9, 1, 2, 3, 4, 5], "what repeats itself goes on repeating"


def test_the_newest_place_counts_and_two_equal_tokens_are_not_enough():
    assert Follower([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3]).draft(1) == [5]
    assert Follower([1, 2, 3, 9, 2, 3]).draft(1) == []


def test_it_follows_its_place_as_long_as_that_is_right():
    follower = Follower([1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3])
    follower.see([4, 5])
    assert follower.draft(2) == [6, 7]
    follower.see([9])  # an edit
    assert follower.draft(2) == []
    follower.see([6, 7, 8])
    assert follower.draft(2) == [1, 2]


def test_after_an_edit_it_finds_its_place_again():
    follower = Follower([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3])
    follower.see([100, 5, 6, 7])
    assert follower.draft(2) == [8, 9]


def test_the_rate_is_known_without_drafting():
    follower = Follower([*range(100), 0, 1, 2])
    first = follower.rate
    follower.see(range(3, 40))
    assert follower.rate > 0.95 > first
    for wrong in range(10):
        follower.see([1000 + wrong, 10, 11, 12])
    assert follower.rate < 0.4


def test_only_the_newest_tokens_of_a_long_prompt_are_looked_at():
    follower = Follower([*range(40_000), 39_000, 39_001, 39_002])
    assert follower.length == 40_003
    assert follower.draft(2) == [39_003, 39_004]
    follower.see([5])
    assert follower.length == 40_004


# ---- whether it pays


def timed(**ratios):
    times = PassTimes()
    times.note(1, 0.05)
    for name, ratio in ratios.items():
        times.note(int(name[1:]), 0.05 * ratio)
    return times


@pytest.mark.parametrize(
    ("rate", "times", "known", "length"),
    [
        (0.98, timed(x4=1.6, x8=2, x16=3), 50, 15),
        (0.8, timed(x4=1.6, x8=2, x16=4), 50, 7),
        (0.98, timed(x4=1.6, x8=2, x16=9), 50, 7),
        (0.98, timed(x4=1.6, x8=2, x16=3), 6, 3),
        (0.98, timed(x4=1.6, x8=2, x16=3), 2, 0),  # so much memory is left
        (0.3, timed(x4=1.6, x8=2, x16=3), 50, 0),
        (0.98, timed(x4=4, x8=8, x16=16), 50, 0),
        (0.95, PassTimes(), 50, 15),
    ],
)
def test_a_draft_is_as_long_as_pays_best_by_what_passes_take(rate, times, known, length):
    assert choose_length(rate, times, known).length == length


def test_a_draft_that_is_not_worth_its_pass_is_not_made_by_a_little():
    times = timed(x4=1.6, x8=9, x16=9)
    assert choose_length(0.45, times, 50).length == 0  # 1.74 tokens in 1.6 passes


def test_free_text_pays_for_few_drafts_that_fail():
    # Three tokens repeat here and there, and what follows is another word each time.
    lookup, said = PromptLookup(), [1, 2, 3, 4]
    drafted = 0
    for word in range(200):
        said += [1, 2, 3, 1000 + word]
        drafted += len(lookup.draft(1, said[:-1], said[-1], 50)) > 0
        said += [2000 + word]
    assert drafted <= 2


def test_another_row_begins_anew():
    lookup = PromptLookup()
    repeats = [*range(50), *range(40)]
    for count in range(60, 80):
        lookup.draft(1, repeats[:count], repeats[count], 15)
    assert lookup.draft(1, repeats[:80], repeats[80], 15) == list(range(31, 46))
    assert lookup.draft(2, [7, 8, 9], 10, 15) == []


# ---- answers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llama.build(tmp_path_factory.mktemp("tiny"), max_position_embeddings=2048)


class Oracle(PromptLookup):
    """Knows what the answer will say, and drafts it with every fifth token wrong."""

    def __init__(self, answer, prompt_length, length=6):
        super().__init__()
        self._answer, self._begin, self._length = answer, prompt_length, length
        self.drafts = 0

    def draft(self, uid, tokens, newest, most):
        place = len(tokens) + 1 - self._begin
        found = self._answer[place : place + min(most, self._length)]
        self.drafts += bool(found)
        return [token + 1 if (place + index) % 5 == 4 else token for index, token in enumerate(found)]


@pytest.fixture(scope="module")
def engine(folder):
    engine = open_engine(folder, prompt_lookup=True, prompt_cache_bytes=0)
    yield engine
    engine.close()


def run_of(engine, chat, lookup=None, so_far=()):
    """The run of a chat, and its number of steps; ``lookup`` makes drafts, given the length of the prompt."""
    made = engine.prepare(chat, so_far)
    if isinstance(made, Unfinished):
        made.work(last=True)
        made = made.prepared()
    engine._model.generator.lookup = lookup(len(made.tokens)) if lookup else None
    run = Run(engine)
    engine.submit("only", made)
    run.steps = 0
    while engine.busy():
        run.step()
        run.steps += 1
    return run


HOT = Sampling(temperature=1.0, seed=5)
SHIP = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "masts": {"type": "integer"}},
    "required": ["name", "masts"],
}
CHATS = {
    "greedy": request("hello", max_tokens=60),
    "seeded": request("hello", HOT, max_tokens=60),
    "nucleus": request("hello", Sampling(temperature=0.9, top_p=0.8, top_k=40, min_p=0.01, seed=6), max_tokens=60),
    "penalties": request(
        "hello",
        Sampling(temperature=1.0, seed=7, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.2),
        max_tokens=60,
    ),
    "biased": request("hello", Sampling(temperature=0, logit_bias={30: 4.0}), max_tokens=60),
    "logprobs": request("hello", HOT, max_tokens=40, logprobs=3),
    "schema": request("hello", Sampling(temperature=1.0, seed=8), format=Format(SHIP), max_tokens=80),
    "logprobs of a schema": request("hello", Sampling(seed=9), format=Format(SHIP), max_tokens=80, logprobs=2),
}


@pytest.mark.parametrize("name", CHATS)
def test_answers_are_the_same_with_drafts_and_take_fewer_passes(engine, name):
    plain = run_of(engine, CHATS[name])
    drafted = run_of(engine, CHATS[name], functools.partial(Oracle, plain.tokens["only"]))
    assert drafted.tokens == plain.tokens
    assert drafted.texts == plain.texts
    assert (drafted.reasons, drafted.usage, drafted.counts) == (plain.reasons, plain.usage, plain.counts)
    assert drafted.steps < 0.6 * plain.steps
    pairs = list(zip(drafted.logprobs.get("only", ()), plain.logprobs.get("only", ()), strict=True))
    assert bool(pairs) == (CHATS[name].logprobs is not None)
    assert all(one.text == other.text and one.logprob == pytest.approx(other.logprob, abs=1e-4) for one, other in pairs)
    if CHATS[name].format:
        assert set(json.loads(drafted.texts["only"])) == {"name", "masts"}


def test_a_stop_string_in_the_midst_of_a_draft_ends_the_answer_there(engine):
    whole = run_of(engine, CHATS["seeded"])
    text, lookup = whole.texts["only"], functools.partial(Oracle, whole.tokens["only"])
    for begin in range(5, 40, 7):
        chat = request("hello", HOT, max_tokens=60, stop=(text[begin : begin + 4],))
        plain, drafted = run_of(engine, chat), run_of(engine, chat, lookup)
        assert (drafted.texts, drafted.reasons, drafted.usage) == (plain.texts, plain.reasons, plain.usage)
        assert drafted.reasons == {"only": "stop"}


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8, 9, 20])
def test_an_answer_ends_at_its_length_also_within_a_draft(engine, most):
    whole = run_of(engine, CHATS["greedy"]).tokens["only"]
    drafted = run_of(engine, request("hello", max_tokens=most), functools.partial(Oracle, whole))
    assert drafted.tokens["only"] == whole[:most]
    assert drafted.reasons == {"only": "length"}


def test_the_end_of_text_within_a_draft_ends_the_answer_even_behind_a_stop_string(engine):
    eos = next(iter(engine._model.loaded.tokenizer.eos_token_ids))
    ends = Sampling(temperature=1.0, seed=5, logit_bias={eos: 5.0})
    plain = run_of(engine, request("hello", ends, max_tokens=200))
    assert plain.reasons == {"only": "stop"}
    right = functools.partial(AlwaysRight, [*plain.tokens["only"], eos])
    drafted = run_of(engine, request("hello", ends, max_tokens=200), right)
    assert (drafted.tokens, drafted.texts, drafted.usage) == (plain.tokens, plain.texts, plain.usage)
    chat = request("hello", ends, max_tokens=200, stop=(plain.texts["only"][-3:],))
    assert run_of(engine, chat, right).reasons == run_of(engine, chat).reasons


class AlwaysRight(Oracle):
    def draft(self, uid, tokens, newest, most):
        place = len(tokens) + 1 - self._begin
        return self._answer[place : place + min(most, 15)]


def test_an_answer_that_goes_on_after_its_worker_is_the_same(engine):
    whole = run_of(engine, CHATS["schema"]).tokens["only"]
    drafted = run_of(engine, CHATS["schema"], functools.partial(Oracle, whole), so_far=whole[:7])
    assert drafted.tokens["only"] == whole[7:]
    assert drafted.steps < 0.6 * len(whole)


def test_what_a_drafted_answer_leaves_in_the_prefix_store_is_right(folder):
    """The next turn begins with what was read and said, and goes on as it would have without."""
    texts = []
    for lookup in (False, True):
        engine = open_engine(folder, prompt_cache_bytes=1 << 24, prompt_lookup=lookup)
        prompt = engine.prepare(request("fox " * 100, max_tokens=60))
        if lookup:
            engine._model.generator.lookup = Oracle(texts[0][0], len(prompt.tokens))
        first = Run(engine)
        engine.submit("first", prompt)
        first.finish()
        tokens = [*prompt.tokens, *first.tokens["first"]]
        second = Run(engine).submit("second", request("", prompt=tokens, max_tokens=20)).finish()
        texts.append((first.tokens["first"], second.tokens["second"]))
        assert second.usage["second"].cached_tokens >= 128 * (len(tokens) // 128) - 128
        engine.close()
    assert texts[0] == texts[1]


def test_rows_that_run_together_are_not_drafted_and_the_one_that_is_left_is(engine):
    chat = request("hello", HOT, max_tokens=60)
    alone = run_of(engine, chat).tokens["only"]
    prompt = engine.prepare(chat)
    oracle = engine._model.generator.lookup = Oracle(alone, len(prompt.tokens))
    run = Run(engine)
    engine.submit("long", prompt)
    engine.submit("short", engine.prepare(request("fox", max_tokens=10)))
    while "short" not in run.reasons:
        run.step()
        assert oracle.drafts == 0
    run.finish()
    assert oracle.drafts > 3
    assert run.tokens["long"] == alone


def test_no_more_is_drafted_than_the_answer_has_memory_for(engine):
    asked = []

    def draft(_uid, tokens, newest, room):
        (live,) = engine._live.values()
        asked.append((room, live.granted - live.generated))
        return [newest] * min(room, 3) if len(tokens) % 32 == 0 else []

    lookup = SimpleNamespace(draft=draft, times=PassTimes())
    run = run_of(engine, request("hello", max_tokens=270), lambda _length: lookup)
    assert run.usage["only"].completion_tokens == 270
    assert {left - room for room, left in asked} == {1}
    assert max(room for room, _ in asked) < 256, "memory is granted in steps"


def test_a_row_whose_grammar_raises_in_a_draft_ends_alone(engine):
    whole = run_of(engine, CHATS["schema"]).tokens["only"]
    prompt = prepare(engine, CHATS["schema"])
    engine._model.generator.lookup = AlwaysRight(whole, len(prompt.tokens))
    advance, calls = prompt.constraint.advance, []

    def raising(token):
        calls.append(token)
        if len(calls) == 6:
            raise ValueError("in the midst of a draft")
        advance(token)

    prompt.constraint.advance = raising
    engine.submit("only", prompt)
    run = Run(engine).finish()
    assert "in the midst of a draft" in run.refused["only"].message
    assert not engine._live


def test_gpus_groups_and_caches_that_can_not_be_cut_get_no_drafts(folder, monkeypatch):
    engine = open_engine(folder, prompt_lookup=False)
    assert engine._model.generator.lookup is None
    engine.close()
    monkeypatch.setattr("plimsoll.engine.chat.generator.is_plain", lambda _cache: False)
    engine = open_engine(folder, prompt_lookup=True)
    assert engine._model.generator.lookup is None
    engine.close()
    monkeypatch.setattr("plimsoll.engine.chat.generator.is_plain", lambda _cache: True)
    monkeypatch.setattr("plimsoll.engine.chat.generator.EagerBatch", RowBatch)
    monkeypatch.setattr("plimsoll.engine.chat.generator.on_the_cpu", lambda: False)
    engine = open_engine(folder, prompt_lookup=True)
    assert engine._model.generator.lookup is None
    engine.close()


def test_an_answer_that_repeats_itself_is_drafted_for_real(engine):
    chat = request("hello", Sampling(temperature=0, logit_bias=dict.fromkeys((40, 41, 42), 12.0)), max_tokens=160)
    plain = run_of(engine, chat)
    made = []

    def lookup(_prompt_length):
        made.append(PromptLookup())
        made[0].times.note(1, 1.0)
        made[0].times.note = lambda _tokens, _seconds: None  # the clock of a busy machine decides nothing here
        return made[0]

    drafted = run_of(engine, chat, lookup)
    assert drafted.tokens == plain.tokens
    assert drafted.steps < 0.7 * plain.steps
