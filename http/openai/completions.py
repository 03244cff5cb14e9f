"""OpenAI's legacy completions: a prompt is read as it is, without the model's chat template."""

import time
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from plimsoll.actors.replies import Delta, Finished, Logprobs, PromptLogprobs
from plimsoll.engine.protocol import ChatRequest, TokenLogprob
from plimsoll.http.answer import WholeAnswer
from plimsoll.http.body import refuse
from plimsoll.http.endpoint import AnswerEncoder, Endpoint, RequestContext
from plimsoll.http.openai import params
from plimsoll.http.openai.answers import DONE, Head, Usages, likelihood, text_waits, usage_body
from plimsoll.http.openai.params import WithChoices

_MAX_PROMPTS = 8
_MAX_ANSWERS = 16
_MAX_TOKENS = 16  # OpenAI's default here: a base model does not stop by itself
_PROMPT = f"a string, a list of 1 to {_MAX_PROMPTS} of them, or token ids in the place of each string"
_IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}}
_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        _IDS,
        *(
            {"type": "array", "minItems": 1, "maxItems": _MAX_PROMPTS, "items": one}
            for one in ({"type": "string"}, _IDS)
        ),
    ]
}
_encode = msgspec.json.encode


class Body(WithChoices, kw_only=True):
    """Null means the default everywhere; unknown keys are ignored."""

    # Which of its four forms it has is seen by hand: msgspec does not tell list[str] from list[int].
    prompt: Annotated[Any, Meta(extra_json_schema=_PROMPT_SCHEMA)]
    suffix: str | None = None
    echo: bool | None = None
    best_of: int | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None


ALLOWED = params.ALLOWED | {
    "prompt": _PROMPT,
    "echo": "true or false",
    "logprobs": "an integer from 0 to 5",
}
decoder = msgspec.json.Decoder(Body)


def chat_requests(body: Body) -> list[ChatRequest]:
    """The engine's requests, one for each prompt. Raises ``BadRequest``."""
    _check(body)
    return [_request(body, prompt) for prompt in _prompts(body)]


def _prompts(body: Body) -> list[str | list[int]]:
    """Texts or token ids, one for each answer. Raises ``BadRequest`` for anything else."""
    given = body.prompt
    prompts = given if isinstance(given, list) and given and not _is_ids(given) else [given]
    if not 1 <= len(prompts) <= _MAX_PROMPTS or not all(isinstance(one, str) or _is_ids(one) for one in prompts):
        raise refuse("prompt", f"must be {_PROMPT}")
    return prompts


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int and 0 <= one < 2**31 for one in value)


class CompletionEncoder(AnswerEncoder):
    """Completions. ``echoes`` are the texts that stand before each answer; with scores they come with those."""

    def __init__(self, head: Head, echoes: list[str]) -> None:
        self._head = head
        self._body = head.body("text_completion") | ({"usage": None} if head.include_usage else {})
        self._held = ["" if head.scored else echo for echo in echoes]
        self._scored = head.scored
        self._scores = [_Scores(echo) for echo in echoes]
        self._usages = Usages(head)
        self._include_usage = head.include_usage

    def events(self, index: int, batch: list[Any]) -> bytes:
        scores = self._scores[index]
        text = "".join(scores.begin(item.tokens) for item in batch if isinstance(item, PromptLogprobs))
        text += "".join(item.text for item in batch if isinstance(item, Delta))
        if text_waits(batch, scored=self._scored):
            self._held[index] += text
            text = ""
        scores.add([token for item in batch if isinstance(item, Logprobs) for token in item.tokens])
        ending = batch[-1] if batch and isinstance(batch[-1], Finished) else None
        if not (text or scores.waiting or ending):
            return b""
        text, self._held[index] = self._held[index] + text, ""
        out = self._chunk([_choice(index, text, scores.take(), ending.reason if ending else None)])
        if ending:
            self._usages.add(index, ending.usage, 0)
            if self._usages.complete:
                out += (self._chunk([], usage=self._usages.body()) if self._include_usage else b"") + DONE
        return out

    def whole(self, answers: list[WholeAnswer]) -> dict[str, Any]:
        parts = zip(self._held, self._scores, answers, strict=True)
        choices = [_whole_choice(index, echo, scores, answer) for index, (echo, scores, answer) in enumerate(parts)]
        usage = usage_body(self._head, answers)
        return self._head.body("text_completion") | {"choices": choices, "usage": usage}

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return b"data: " + _encode(self._body | {"choices": choices} | more) + b"\n\n"


class _Scores:
    """Makes the older form of log-probabilities, which says where in the text each token begins.

    ``prompt`` is the text that is echoed; without any it is that of the prompt's tokens.
    """

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt
        self._offset = 0
        self._told = _nothing_told()

    @property
    def waiting(self) -> bool:
        return bool(self._told["tokens"])

    def begin(self, tokens: list[TokenLogprob]) -> str:
        """Take the scores of the prompt, and return its text."""
        text = self._prompt or b"".join(token.encoded for token in tokens).decode("utf-8", "replace")
        # What the tokenizer puts before a text (its own first token, a space) has no place in it: count from the end.
        self._offset = len(text) - sum(map(_characters, tokens))
        self.add(tokens)
        self._told["token_logprobs"][0] = self._told["top_logprobs"][0] = None
        return text

    def add(self, tokens: list[TokenLogprob]) -> None:
        """Take the scores of the tokens that come next."""
        for token in tokens:
            top: dict[str, float] = {}
            for other, logprob in token.top:  # tokens may have one text: the likeliest comes first
                top.setdefault(other, likelihood(logprob))
            self._told["tokens"].append(token.text)
            self._told["token_logprobs"].append(likelihood(token.logprob))
            self._told["top_logprobs"].append(top)
            self._told["text_offset"].append(max(0, self._offset))
            self._offset += _characters(token)

    def take(self) -> dict[str, Any] | None:
        """What has come since the last time."""
        told, self._told = self._told, _nothing_told()
        return told if told["tokens"] else None


def _nothing_told() -> dict[str, list[Any]]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def _characters(token: TokenLogprob) -> int:
    """How many characters begin with this token's bytes; those after the first of a character are 0b10xxxxxx."""
    return sum(byte & 0xC0 != 0x80 for byte in token.encoded)


def _whole_choice(index: int, echo: str, scores: _Scores, answer: WholeAnswer) -> dict[str, Any]:
    if answer.prompt_logprobs:
        echo = scores.begin(answer.prompt_logprobs)
    scores.add(answer.logprobs)
    return _choice(index, echo + answer.text, scores.take(), answer.reason)


def _choice(index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _check(body: Body) -> None:
    """Raise ``BadRequest`` for parameters that would change the answer and are not supported."""
    count = body.n or 1
    prompts = len(_prompts(body))
    if prompts * count > _MAX_ANSWERS:
        raise refuse("n", f"is {count} for {prompts} prompts, but the answers may be {_MAX_ANSWERS} at most")
    if body.suffix and body.echo:
        raise refuse("echo", "can't be had with suffix")
    if body.echo and body.logprobs is None and not all(isinstance(one, str) for one in _prompts(body)):
        raise refuse("echo", "can't be had with token ids unless logprobs are asked for")
    if body.best_of not in (None, count):
        raise refuse("best_of", f"is {body.best_of}, but must be the same as n ({count})")


def _request(body: Body, prompt: str | list[int]) -> ChatRequest:
    return ChatRequest(
        messages=[],
        prompt=prompt,
        suffix=body.suffix or "",
        sampling=body.sampling(),
        given=body.given(),
        max_tokens=_most_tokens(body),
        stop=body.stops(),
        logprobs=body.logprobs,
        score_prompt=_scores_prompt(body),
    )


def _scores_prompt(body: Body) -> bool:
    return bool(body.echo) and body.logprobs is not None


def _most_tokens(body: Body) -> int | None:
    """0 has the prompt alone scored; elsewhere it is no limit, as -1 is."""
    if body.max_tokens is None:
        return _MAX_TOKENS
    return 0 if body.max_tokens == 0 and _scores_prompt(body) else params.most_tokens(body.max_tokens)


def _encoder(context: RequestContext) -> CompletionEncoder:
    body: Body = context.body
    texts = [prompt if body.echo and isinstance(prompt, str) else "" for prompt in _prompts(body)]
    echoes = [text for text in texts for _ in range(context.copies)]
    head = Head(
        id=f"cmpl-{context.id}",
        model=body.model,
        created=int(time.time()),
        count=len(echoes),
        per_prompt=context.copies,
        include_usage=body.include_usage(),
        scored=body.logprobs is not None,
    )
    return CompletionEncoder(head, echoes)


COMPLETIONS = Endpoint(
    api="openai",
    decoder=decoder,
    allowed=ALLOWED,
    prompts=chat_requests,
    copies=lambda body: body.n or 1,
    text="prompt",
    encoder=_encoder,
)
