"""Legacy completions, as the official client sees them."""

import json

import pytest

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Delta, Finished, Logprobs, PromptLogprobs
from plimsoll.engine.protocol import TokenLogprob, Usage

BAD_VALUES = [
    ({"prompt": None}, "prompt", "token ids"),
    ({"prompt": []}, "prompt", "token ids"),
    ({"prompt": ["x"] * 9}, "prompt", "1 to 8 of them"),
    ({"prompt": [1, -2]}, "prompt", "token ids"),
    ({"prompt": [[1, 2], []]}, "prompt", "token ids"),
    ({"prompt": [1, 2], "echo": True}, "echo", "token ids unless logprobs"),
    ({"suffix": "x", "echo": True}, "echo", "suffix"),
    ({"prompt": ["x"] * 8, "n": 3}, "n", "16 at most"),
    ({"best_of": 3}, "best_of", "the same as n"),
    ({"logprobs": 6}, "logprobs", "from 0 to 5"),
    ({"logprobs": True}, "logprobs", "from 0 to 5"),
    ({"echo": "yes"}, "echo", "true or false"),
    ({"temperature": 3}, "temperature", "from 0 to 2"),
]


def echoing(chat):
    """Answer every prompt with itself in capitals."""
    chat.reply.send(Delta(chat.request.prompt.upper(), 1))
    chat.reply.send(Finished("stop", Usage(prompt_tokens=4, completion_tokens=5, cached_tokens=1)))


def test_a_prompt_is_read_as_it_is(client, system):
    system.scripts[m.Chat] = echoing
    answer = client.completions.create(model="tiny", prompt="once", max_tokens=7, stop=["."], temperature=0, best_of=1)
    request = system.hears(m.Chat).request
    assert answer.choices[0].text == "ONCE"
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.usage.total_tokens == 9
    assert (request.prompt, request.messages, request.max_tokens, request.stop) == ("once", [], 7, (".",))


def test_without_a_limit_there_are_16_tokens(http, system):
    system.scripts[m.Chat] = echoing
    http.post("/v1/completions", json={"model": "tiny", "prompt": "x"})
    assert system.hears(m.Chat).request.max_tokens == 16


@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_numbered_prompt_by_prompt(client, system, stream):
    system.scripts[m.Chat] = echoing
    asked = {"model": "tiny", "prompt": ["a", "b"], "n": 2, "echo": True}
    if stream:
        chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        texts = [""] * 4
        for choice in (choice for chunk in chunks for choice in chunk.choices):
            texts[choice.index] += choice.text
        usage = chunks[-1].usage
    else:
        answer = client.completions.create(**asked)
        texts, usage = [choice.text for choice in answer.choices], answer.usage
    assert texts == ["aA", "aA", "bB", "bB"]
    assert (usage.prompt_tokens, usage.completion_tokens) == (8, 20)
    assert usage.prompt_tokens_details.cached_tokens == 2


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_have_the_legacy_shape(client, system, stream):
    def script(chat):
        chat.reply.send(Delta("Hey", 1))
        chat.reply.send(Logprobs([TokenLogprob("Hey", -0.5, [("Hey", -0.5), ("Yo", -1.0)])]))
        chat.reply.send(Delta(" you", 2))
        chat.reply.send(Logprobs([TokenLogprob(" you", -0.75)]))
        chat.reply.send(Finished("length", Usage()))

    system.scripts[m.Chat] = script
    got = client.completions.create(model="tiny", prompt="x", logprobs=2, stream=stream)
    told = [chunk.choices[0].logprobs for chunk in (got if stream else [got]) if chunk.choices[0].logprobs]
    assert [token for one in told for token in one.tokens] == ["Hey", " you"]
    assert [offset for one in told for offset in one.text_offset] == [0, 3]
    assert [value for one in told for value in one.token_logprobs] == [-0.5, -0.75]
    assert told[0].top_logprobs[0] == {"Hey": -0.5, "Yo": -1.0}
    assert system.hears(m.Chat).request.logprobs == 2


SHIP = [TokenLogprob("A", 0.0), TokenLogprob(" ship", -1.5, [(" sea", -0.5), (" ship", -1.5)])]
WHALE = [
    TokenLogprob("<s>", 0.0),
    TokenLogprob(" A", -2.0),
    TokenLogprob("\ufffd", -3.0, part=b"\xf0\x9f"),
    TokenLogprob("\ufffd", -4.0, part=b"\x90\x8b"),
    TokenLogprob("!", -5.0, [("!", -5.0), ("?", -6.0), ("!", -7.0)]),
]


def scoring(prompt, said=()):
    """Tell the scores of the prompt, and then each token of the answer."""

    def script(chat):
        chat.reply.send(PromptLogprobs(prompt))
        for count, token in enumerate(said, 1):
            chat.reply.send(Delta(token.text, count))
            chat.reply.send(Logprobs([token]))
        chat.reply.send(Finished("length", Usage(prompt_tokens=len(prompt), completion_tokens=len(said))))

    return script


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["A ship", [7, 8]], ids=["text", "token ids"])
def test_echo_with_log_probabilities_tells_those_of_the_prompt_too(client, system, stream, prompt):
    system.scripts[m.Chat] = scoring(SHIP, [TokenLogprob(" lies", -0.25, [(" lies", -0.25)])])
    asked = {"model": "tiny", "prompt": prompt, "logprobs": 1, "echo": True, "max_tokens": 1, "temperature": 0}
    got = client.completions.create(**asked, stream=stream)
    choices = [chunk.choices[0] for chunk in (got if stream else [got])]
    told = [choice.logprobs for choice in choices if choice.logprobs]
    assert "".join(choice.text for choice in choices) == "A ship lies"
    assert [token for one in told for token in one.tokens] == ["A", " ship", " lies"]
    assert [value for one in told for value in one.token_logprobs] == [None, -1.5, -0.25]
    assert [top for one in told for top in one.top_logprobs] == [
        None,
        {" sea": -0.5, " ship": -1.5},
        {" lies": -0.25},
    ]
    assert [offset for one in told for offset in one.text_offset] == [0, 1, 6]
    request = system.hears(m.Chat).request
    assert (request.prompt, request.logprobs, request.score_prompt, request.max_tokens) == (prompt, 1, True, 1)


def test_the_prompts_scores_alone_where_no_token_is_wanted(client, system):
    system.scripts[m.Chat] = scoring(SHIP)
    asked = {"model": "tiny", "prompt": ["A ship", [7, 8]], "logprobs": 0, "echo": True, "max_tokens": 0}
    answer = client.completions.create(**asked)
    assert [choice.text for choice in answer.choices] == ["A ship"] * 2
    assert [choice.logprobs.token_logprobs for choice in answer.choices] == [[None, -1.5]] * 2
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 0)
    assert [system.hears(m.Chat).request.max_tokens for _ in range(2)] == [0, 0]


def test_without_scores_no_tokens_are_no_limit(http, system):
    system.scripts[m.Chat] = echoing
    http.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 0, "echo": True})
    request = system.hears(m.Chat).request
    assert (request.max_tokens, request.score_prompt) == (None, False)


@pytest.mark.parametrize(
    ("prompt", "text", "offsets"),
    [("A\U0001f40b!", "A\U0001f40b!", [0, 0, 1, 2, 2]), ([1, 2], "<s> A\U0001f40b!", [0, 3, 5, 6, 6])],
)
def test_offsets_count_characters_and_what_a_tokenizer_adds_has_none(http, system, prompt, text, offsets):
    system.scripts[m.Chat] = scoring(WHALE)
    body = {"model": "tiny", "prompt": prompt, "logprobs": 3, "echo": True, "max_tokens": 0}
    (choice,) = http.post("/v1/completions", json=body).json()["choices"]
    assert (choice["text"], choice["logprobs"]["text_offset"]) == (text, offsets)
    assert choice["logprobs"]["top_logprobs"][-1] == {"!": -5.0, "?": -6.0}, "of two with one text the likelier"


def test_a_stream_ends_with_the_reason_and_done(http, system):
    system.scripts[m.Chat] = echoing
    text = http.post("/v1/completions", json={"model": "tiny", "prompt": "x", "stream": True}).text
    *lines, done = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert done == "[DONE]"
    assert "usage" not in lines[-1]
    assert json.loads(lines[-1])["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(("changes", "param", "sentence"), BAD_VALUES, ids=[p for _, p, _ in BAD_VALUES])
def test_a_bad_value_is_named_with_what_it_may_be(http, system, changes, param, sentence):
    response = http.post("/v1/completions", json={"model": "tiny", "prompt": "x"} | changes)
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert error["param"] == param
    assert sentence in error["message"]
    assert system.has_heard(m.Chat) == 0


def test_an_unknown_model_is_404(http):
    response = http.post("/v1/completions", json={"model": "nope", "prompt": "x"})
    assert (response.status_code, response.json()["error"]["param"]) == (404, "model")


@pytest.mark.parametrize(("prompt", "reached"), [([1, 2], [[1, 2]]), ([[1, 2], "x"], [[1, 2], "x"])])
def test_prompts_may_be_token_ids(http, system, prompt, reached):
    system.scripts[m.Chat] = lambda chat: chat.reply.send(Finished("stop", Usage()))
    assert http.post("/v1/completions", json={"model": "tiny", "prompt": prompt}).status_code == 200
    assert [system.hears(m.Chat).request.prompt for _ in reached] == reached


def test_a_suffix_reaches_the_engine_on_both_apis(http, system):
    system.scripts[m.Chat] = lambda chat: chat.reply.send(Finished("stop", Usage()))
    body = {"model": "tiny", "prompt": "def f(", "suffix": "return x", "stream": False}
    for path in ("/v1/completions", "/api/generate"):
        assert http.post(path, json=body).status_code == 200
        request = system.hears(m.Chat).request
        assert (request.prompt, request.suffix, request.messages) == ("def f(", "return x", [])
