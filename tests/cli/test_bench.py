"""``plimsoll bench``."""

import json

import pytest

from plimsoll.cli.bench import Answer, parse_streams, summary


def test_bench_prints_a_row_for_each_number_of_streams(plimsoll, url):
    done = plimsoll("bench", "slow", "--tokens", "4", "--streams", "1,3", "--url", url)
    head, one, three = done.stdout.splitlines()
    assert head.split("  ")[0] == "STREAMS"
    assert (one.split()[0], three.split()[0]) == ("1", "3")


def test_bench_for_programs(plimsoll, url):
    told = json.loads(plimsoll("bench", "slow", "--tokens", "4", "--streams", "2", "--json", "--url", url).stdout)
    (row,) = told.pop("rows")
    assert told == {"model": "slow", "tokens": 4}
    assert (row["streams"], row["tokens"]) == (2, 8)
    # The model takes 50 ms for each token after the first, and no machine makes it faster. What a stream's speed looks
    # like depends on when the first was read.
    assert 0 < row["tokens_per_s_all"] < 2 * 4 / 0.15
    assert row["tokens_per_s_each"] >= 0
    assert row["first_token_ms"] > 0


def test_bench_of_a_model_that_can_t_be_loaded_is_one_line(shell, plimsoll, url):
    shell.fails(plimsoll("bench", "broken", "--url", url), 1, "the file is torn")


def test_bench_with_odd_streams_is_wrong_usage(plimsoll, url):
    assert plimsoll("bench", "slow", "--streams", "one", "--url", url).returncode == 2


@pytest.mark.parametrize("text", ["", "0", "1,,2", "65", "a", "-1"])
def test_numbers_of_streams_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="1 to 64"):
        parse_streams(text)


def test_a_row_counts_a_stream_s_speed_without_its_first_token_and_all_from_the_question_on():
    row = summary([Answer(0.0, 1.0, 3.0, 21), Answer(0.0, 2.0, 4.0, 21)])
    assert (row.first_token_s, row.worst_first_token_s) == (1.5, 2.0)
    assert (row.per_stream, row.total) == (10.0, 10.5)
