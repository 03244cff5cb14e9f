"""Samplers, penalties, stop strings and the prompt cache, each for itself."""

import itertools
import random

import mlx.core as mx
import pytest
import tiny_llama
from mlx_lm import sample_utils
from mlx_lm.models.cache import KVCache
from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, NaiveStreamingDetokenizer
from transformers import PreTrainedTokenizerFast

from plimsoll.engine import sampling as filters
from plimsoll.engine.answer_text import AnswerText
from plimsoll.engine.prompt_cache import PromptCache, common_prefix
from plimsoll.engine.protocol import Sampling
from plimsoll.engine.sampling import Samplers, penalties

# ---- filters and samplers


@pytest.fixture
def logprobs():
    logits = mx.random.normal((3, 50), key=mx.random.key(2)) * 3
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


@pytest.fixture(autouse=True)
def no_compiler():
    # mlx-lm's own filters are compiled with g++ for every number they meet.
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name, values in {"top_p": (0.1, 0.5, 0.99), "min_p": (0.01, 0.5, 1.0)}.items()
        for value in values
    ]
    + [("top_k", 1), ("top_k", 7), ("top_k", 49)],
)
def test_each_filter_keeps_what_mlx_lms_keeps(logprobs, name, value):
    ours = getattr(filters, f"keep_{name}")(logprobs, value)
    theirs = getattr(sample_utils, f"apply_{name}")(logprobs, value)
    assert mx.array_equal(ours, theirs)
    assert mx.isinf(ours).any()


def test_greedy_requests_share_one_sampler_so_that_a_batch_stays_a_batch():
    samplers = Samplers()
    assert samplers.sampler(Sampling(temperature=0, seed=1)) is samplers.sampler(Sampling(temperature=0, top_p=0.3))


def test_requests_without_a_seed_share_a_sampler_per_setting_whatever_their_penalties():
    samplers = Samplers()
    assert samplers.sampler(Sampling()) is samplers.sampler(Sampling(presence_penalty=1))
    assert samplers.sampler(Sampling()) is not samplers.sampler(Sampling(top_p=0.5))
    assert samplers.sampler(Sampling(seed=1)) is not samplers.sampler(Sampling(seed=1))


def test_the_shared_samplers_are_bounded():
    samplers = Samplers()
    for index in range(1000):
        samplers.sampler(Sampling(temperature=1 + index / 1000))
    assert len(samplers._shared) <= 64


def test_a_shared_sampler_draws_a_row_for_each_request():
    flat = mx.zeros((16, 1000))
    sampler = Samplers().sampler(Sampling())
    first, second = sampler(flat).tolist(), sampler(flat).tolist()
    assert len(set(first)) > 8
    assert first != second


def test_a_seed_repeats_and_leaves_the_global_generator_alone():
    flat = mx.zeros((1, 1000))
    mx.random.seed(1)
    state = mx.random.state[0].tolist()
    draws = []
    for _ in range(2):
        sampler = Samplers().sampler(Sampling(seed=9))
        draws.append([sampler(flat).item() for _ in range(20)])
    assert draws[0] == draws[1]
    assert len(set(draws[0])) > 15
    assert mx.random.state[0].tolist() == state


def test_temperature_sharpens_the_distribution():
    logits = mx.array([[0.0, 2.0]])
    shares = []
    for temperature in (0.2, 1, 2):
        sampler = Samplers().sampler(Sampling(temperature=temperature, seed=1))
        shares.append(sum(sampler(logits).item() for _ in range(300)) / 300)
    # The logistic function of 2 / temperature.
    assert shares == pytest.approx([1.0, 0.88, 0.73], abs=0.07)


# ---- penalties


def penalised(sampling, prompt, generated, logits):
    tokens = mx.array(prompt + generated)
    for processor in penalties(sampling, len(prompt)):
        logits = processor(tokens, logits)
    return logits.tolist()[0]


def test_presence_counts_once_and_frequency_every_time_and_neither_the_prompt():
    def after(sampling):
        return penalised(sampling, [0, 1], [2, 2, 3], mx.ones((1, 5)))

    assert after(Sampling(presence_penalty=0.5)) == [1, 1, 0.5, 0.5, 1]
    assert after(Sampling(frequency_penalty=0.5)) == [1, 1, 0, 0.5, 1]
    assert after(Sampling(presence_penalty=0.5, frequency_penalty=-1)) == [1, 1, 2.5, 1.5, 1]


def test_repetition_counts_the_prompt_and_pushes_down_on_either_side_of_zero():
    logits = mx.array([[4.0, -4.0, 4.0, -4.0]])
    assert penalised(Sampling(repetition_penalty=2), [0, 1, 1], [], logits) == [2, -8, 4, -4]


def test_penalties_before_the_first_token_change_nothing():
    sampling = Sampling(presence_penalty=2, frequency_penalty=2)
    assert penalised(sampling, [0, 1], [], mx.ones((1, 3))) == [1, 1, 1]


def test_penalties_see_more_than_the_last_twenty_tokens():
    generated = [0] + [1] * 300
    assert penalised(Sampling(presence_penalty=1), [], generated, mx.ones((1, 3))) == [0, 0, 1]


def test_no_penalty_is_no_processor():
    assert penalties(Sampling(), 5) == []


# ---- the answer's text


class Letters:
    """A detokenizer whose tokens are strings."""

    def __init__(self):
        self.last_segment = ""

    def add_token(self, token):
        self.last_segment = token

    def finalize(self):
        self.last_segment = ""


def joined(segments):
    return "".join(segment.text for segment in segments)


def shown(chunks, stop):
    """All text that is shown, and whether a stop string ended it."""
    text = AnswerText(Letters(), stop)
    out = ""
    for chunk in chunks:
        out += joined(text.add(chunk))
        if text.stopped:
            return out, True
    return out + joined(text.finish()), text.stopped


@pytest.mark.parametrize(
    ("chunks", "stop", "expected"),
    [
        (["Hel", "lo. ", "EN", "D", "x"], ["END"], "Hello. "),
        (["END"], ["END"], ""),
        (["xENDEND"], ["END"], "x"),
        (["xab"], ["ab", "b"], "x"),
        (["xab"], ["b", "ab"], "x"),
        (["xabc", "d"], ["abcd", "bc"], "xa"),
        (["aaa", "ab"], ["aab"], "aa"),
        (["a\n", "\n", "b"], ["\n\n"], "a"),
        (["🚢", "⚓"], ["⚓"], "🚢"),
    ],
)
def test_a_stop_string_and_what_follows_is_never_shown(chunks, stop, expected):
    assert shown(chunks, stop) == (expected, True)


def test_what_only_looked_like_a_stop_string_is_shown_at_the_end():
    assert shown(["so EN"], ["END"]) == ("so EN", False)
    assert shown(["so EN", "d"], ["END"]) == ("so ENd", False)


def test_empty_stop_strings_stop_nothing():
    assert shown(["abc"], ["", ""]) == ("abc", False)


def test_any_stop_strings_in_any_chunks_do_what_a_plain_search_does():
    chance = random.Random(1)
    for _ in range(3000):
        text = "".join(chance.choices("abc", k=chance.randint(1, 14)))
        stop = ["".join(chance.choices("abc", k=chance.randint(1, 4))) for _ in range(chance.randint(1, 3))]
        cuts = sorted(chance.choices(range(len(text) + 1), k=3))
        chunks = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
        # The first to be complete counts; of those that end together, the longest.
        ends = [(text.find(s) + len(s), -len(s)) for s in stop if s in text]
        expected = (text, False)
        if ends:
            end, length = min(ends)
            expected = (text[: end + length], True)
        assert shown(chunks, stop) == expected, (text, stop, chunks)


@pytest.mark.parametrize(
    ("chunks", "stop", "found"),
    [
        (["Hel", "lo. ", "EN", "D", "x"], ["no", "END"], "END"),
        (["xab"], ["b", "ab"], "ab"),
        (["xabc", "d"], ["abcd", "bc"], "bc"),
        (["x", "a", "b"], ["xyz", "b"], "b"),
        (["so EN"], ["END"], None),
    ],
)
def test_the_stop_string_that_ended_an_answer_is_known(chunks, stop, found):
    text = AnswerText(Letters(), stop)
    for chunk in chunks:
        if not text.stopped:
            text.add(chunk)
    assert text.stop_found == found


@pytest.fixture(scope="session")
def bpe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_llama.write_tokenizer(folder)
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def byte_tokens(bpe, text):
    """One token per byte of the text, so that every character is cut."""
    from tokenizers.pre_tokenizers import ByteLevel

    pieces = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return [bpe.convert_tokens_to_ids(letter) for piece, _ in pieces for letter in piece]


@pytest.mark.parametrize("kind", [BPEStreamingDetokenizer, NaiveStreamingDetokenizer])
def test_a_character_cut_into_tokens_appears_when_it_is_whole(bpe, kind):
    text = AnswerText(kind(bpe), ())
    parts = [joined(text.add(token)) for token in byte_tokens(bpe, "a🚢ж")]
    assert parts == ["a", "", "", "", "🚢", "", "ж"]
    assert joined(text.finish()) == ""


@pytest.mark.parametrize("kind", [BPEStreamingDetokenizer, NaiveStreamingDetokenizer])
def test_a_character_that_stays_incomplete_ends_as_a_replacement(bpe, kind):
    text = AnswerText(kind(bpe), ())
    parts = [joined(text.add(token)) for token in byte_tokens(bpe, "a🚢")[:-1]]
    assert "".join(parts) == "a"
    assert set(joined(text.finish())) == {"\N{REPLACEMENT CHARACTER}"}


def test_a_stop_string_is_found_in_a_character_cut_into_tokens(bpe):
    text = AnswerText(BPEStreamingDetokenizer(bpe), ("🚢",))
    out = ""
    for token in byte_tokens(bpe, "a🚢b"):
        out += joined(text.add(token))
        if text.stopped:
            break
    assert (out, text.stopped) == ("a", True)


def test_a_detokenizer_that_cannot_finish_costs_its_held_text_only():
    class Broken(Letters):
        def finalize(self):
            self.last_segment = ""
            raise KeyError("\uff5c")

    text = AnswerText(Broken(), ("END",))
    assert joined(text.add("a EN")) == "a "
    assert joined(text.finish()) == "EN"


# ---- the prompt cache


def layers(length, *, trimmable=True):
    cache = KVCache()
    cache.update_and_fetch(mx.ones((1, 1, length, 4)), mx.ones((1, 1, length, 4)))
    if not trimmable:
        cache.is_trimmable = lambda: False
    return [cache]


EACH = layers(100)[0].nbytes


def test_the_longest_common_beginning_is_taken_and_the_rest_trimmed_off_a_copy():
    cache = PromptCache(10 * EACH)
    cache.put([1, 2, 3, 4, 5], layers(5))
    cache.put([1, 2, 9], layers(3))
    taken, length = cache.take([1, 2, 3, 7, 8])
    assert (length, taken[0].offset) == (3, 3)
    taken, length = cache.take([1, 2, 3, 4, 5, 6])
    assert (length, taken[0].offset) == (5, 5)
    assert cache.take([5, 5]) == (None, 0)


def test_the_last_token_is_always_left_to_read():
    cache = PromptCache(10 * EACH)
    cache.put([1, 2, 3], layers(3))
    assert cache.take([1, 2, 3])[1] == 2
    assert cache.take([1, 2])[1] == 1
    assert cache.take([1]) == (None, 0)


def test_layers_that_cannot_be_trimmed_serve_only_what_continues_them():
    cache = PromptCache(10 * EACH)
    cache.put([1, 2, 3], layers(3, trimmable=False))
    assert cache.take([1, 2, 3]) == (None, 0)
    assert cache.take([1, 2, 9, 9]) == (None, 0)
    assert cache.take([1, 2, 3, 4])[1] == 3


def test_a_longer_entry_replaces_its_own_beginning():
    cache = PromptCache(10 * EACH)
    cache.put([1, 2], layers(2))
    cache.put([1, 2, 3], layers(3))
    cache.put([1, 2], layers(2))
    cache.put([1, 2, 3], layers(3))
    assert len(cache) == 1
    assert cache.take([1, 2, 3, 4])[1] == 3


def test_the_byte_limit_holds_and_the_least_recently_used_leaves_first():
    cache = PromptCache(3 * EACH)
    for first in (1, 2, 3):
        cache.put([first, 0], layers(100))
    cache.take([1, 0, 0])
    cache.put([4, 0], layers(100))
    assert cache.nbytes == 3 * EACH
    assert [cache.take([first, 0, 0])[1] for first in (1, 2, 3, 4)] == [2, 0, 2, 2]


def test_an_entry_above_the_limit_does_not_drive_the_others_out():
    cache = PromptCache(EACH)
    cache.put([1, 2], layers(100))
    cache.put([3, 4], layers(300))
    assert cache.take([1, 2, 3])[1] == 2
    assert cache.take([3, 4, 5]) == (None, 0)


def test_what_is_kept_does_not_hold_the_batch_it_came_from():
    mx.clear_cache()
    before = mx.get_active_memory()
    batch = mx.ones((16, 1, 5000, 4)) * 2
    mx.eval(batch)
    one = KVCache()
    one.keys, one.values = mx.contiguous(batch[:1, :, :50]), mx.contiguous(batch[1:2, :, :50])
    one.offset = 50
    cache = PromptCache(10 * EACH)
    cache.put([1, 2], [one])
    del batch
    assert mx.get_active_memory() - before < 2 * one.nbytes


def test_common_prefix_is_the_plain_one():
    chance = random.Random(3)
    for _ in range(500):
        left = chance.choices([1, 2], k=chance.randint(0, 12))
        right = chance.choices([1, 2], k=chance.randint(0, 12))
        plain = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False))))
        assert common_prefix(left, right) == plain
