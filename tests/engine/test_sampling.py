"""Samplers, penalties, stop strings and the prompt cache, each for itself."""

import itertools
import random

import mlx.core as mx
import pytest
import tiny_llama
from mlx_lm import sample_utils
from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, NaiveStreamingDetokenizer
from transformers import PreTrainedTokenizerFast

from plimsoll.engine.chat import sampling as filters
from plimsoll.engine.chat.prefix_store.tree import common_prefix
from plimsoll.engine.chat.running import AnswerParts
from plimsoll.engine.chat.sampling import draw, penalties, sampler_for
from plimsoll.engine.dialect.answer_plan import PLAIN
from plimsoll.engine.protocol import Sampling

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
    assert sampler_for(Sampling(temperature=0, seed=1)) is sampler_for(Sampling(temperature=0, top_p=0.3))


def test_rows_of_one_kind_are_drawn_together_as_if_each_were_alone(logprobs):
    def some():
        return [sampler_for(Sampling(seed=seed, top_p=0.9, presence_penalty=seed / 10)) for seed in (1, 2, -3)]

    alone = [[one(logprobs[row : row + 1]).item() for _ in range(5)] for row, one in enumerate(some())]
    together = some()
    assert len({one.kind for one in together}) == 1
    assert [list(row) for row in zip(*(draw(together, logprobs).tolist() for _ in range(5)), strict=True)] == alone
    assert sampler_for(Sampling(top_p=0.5)).kind != together[0].kind


def test_each_token_is_drawn_by_the_seed_and_its_position_alone():
    flat = mx.zeros((1, 1000))
    first = sampler_for(Sampling(seed=9))
    drawn = [first(flat).item() for _ in range(20)]
    later = sampler_for(Sampling(seed=9))
    later.position = 12
    assert [later(flat).item() for _ in range(8)] == drawn[12:]
    assert sampler_for(Sampling()).key.tolist() != sampler_for(Sampling()).key.tolist()


def test_a_seed_repeats_and_leaves_the_global_generator_alone():
    flat = mx.zeros((1, 1000))
    mx.random.seed(1)
    state = mx.random.state[0].tolist()
    draws = []
    for _ in range(2):
        sampler = sampler_for(Sampling(seed=9))
        draws.append([sampler(flat).item() for _ in range(20)])
    assert draws[0] == draws[1]
    assert len(set(draws[0])) > 15
    assert mx.random.state[0].tolist() == state


def test_temperature_sharpens_the_distribution():
    logits = mx.array([[0.0, 2.0]])
    shares = []
    for temperature in (0.2, 1, 2):
        sampler = sampler_for(Sampling(temperature=temperature, seed=1))
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


def shown(chunks, stop):
    """All text that is shown, and whether a stop string ended it."""
    text = AnswerParts(Letters(), tuple(stop), PLAIN)
    out = ""
    for chunk in chunks:
        out += text.add(chunk).text
        if text.ended:
            return out, True
    return out + text.finish().text, text.ended


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
    text = AnswerParts(Letters(), tuple(stop), PLAIN)
    for chunk in chunks:
        if not text.ended:
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
    text = AnswerParts(kind(bpe), (), PLAIN)
    parts = [text.add(token).text for token in byte_tokens(bpe, "a🚢ж")]
    assert parts == ["a", "", "", "", "🚢", "", "ж"]
    assert text.finish().text == ""


@pytest.mark.parametrize("kind", [BPEStreamingDetokenizer, NaiveStreamingDetokenizer])
def test_a_character_that_stays_incomplete_ends_as_a_replacement(bpe, kind):
    text = AnswerParts(kind(bpe), (), PLAIN)
    parts = [text.add(token).text for token in byte_tokens(bpe, "a🚢")[:-1]]
    assert "".join(parts) == "a"
    assert set(text.finish().text) == {"\N{REPLACEMENT CHARACTER}"}


def test_a_stop_string_is_found_in_a_character_cut_into_tokens(bpe):
    text = AnswerParts(BPEStreamingDetokenizer(bpe), ("🚢",), PLAIN)
    out = ""
    for token in byte_tokens(bpe, "a🚢b"):
        out += text.add(token).text
        if text.ended:
            break
    assert (out, text.ended) == ("a", True)


def test_a_detokenizer_that_cannot_finish_costs_its_held_text_only():
    class Broken(Letters):
        def finalize(self):
            self.last_segment = ""
            raise KeyError("\uff5c")

    text = AnswerParts(Broken(), ("END",), PLAIN)
    assert text.add("a EN").text == "a "
    assert text.finish().text == "EN"


# ---- beginnings of prompts


def test_common_prefix_is_the_plain_one():
    chance = random.Random(3)
    for _ in range(500):
        left = chance.choices([1, 2], k=chance.randint(0, 12))
        right = chance.choices([1, 2], k=chance.randint(0, 12))
        plain = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False))))
        assert common_prefix(left, right) == plain
