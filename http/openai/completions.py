"""OpenAI's legacy completions: a prompt is read as it is, without the model's chat template."""

import time
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from sanic import HTTPResponse

from plimsoll.actors.messages import Delta, Finished, Logprobs, Waiting
from plimsoll.engine.protocol import ChatRequest, TokenLogprob
from plimsoll.errors import PlimsollError
from plimsoll.http.body import read, refuse
from plimsoll.http.errors import envelope, respond
from plimsoll.http.front import AnyRequest, App, Front
from plimsoll.http.limits.request import check_chat
from plimsoll.http.openai import params
from plimsoll.http.openai.params import WithChoices, variants
from plimsoll.http.openai.shapes import DONE, Head, Usages, likelihood, text_waits, usage_body
from plimsoll.http.sse import Stream, comment
from plimsoll.http.stream import Answer
from plimsoll.http.whole import gather

_MAX_PROMPTS = 8
_MAX_ANSWERS = 16
_MAX_TOKENS = 16  # OpenAI's default here: a base model does not stop by itself
_encode = msgspec.json.encode


class Body(WithChoices, kw_only=True):
    """Null means the default everywhere; unknown keys are ignored."""

    prompt: str | Annotated[list[str], Meta(min_length=1, max_length=_MAX_PROMPTS)]
    suffix: str | None = None
    echo: bool | None = None
    best_of: int | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None


ALLOWED = params.ALLOWED | {
    "prompt": f"a string or a list of 1 to {_MAX_PROMPTS} strings",
    "prompt[]": "a string: prompts of token ids are not supported, only text",
    "echo": "true or false",
    "logprobs": "an integer from 0 to 5",
}
decoder = msgspec.json.Decoder(Body)


def add_routes(app: App, front: Front) -> None:
    """Register this module's endpoint."""
    api = _Completions(front)
    app.add_route(api.completions, "/v1/completions", methods=["POST"], name="completions")


class _Completions:
    def __init__(self, front: Front) -> None:
        self._front = front

    async def completions(self, request: AnyRequest) -> HTTPResponse | None:
        body: Body = read(request, decoder, ALLOWED)
        asked = [check_chat(one, self._front.config.limits, "prompt") for one in chat_requests(body)]
        self._front.catalog.find(body.model)
        begin = self._front.recorder.begin
        answers = [Answer(self._front.supervisor, body.model, one, begin("openai", body.model)) for one in asked]
        head = Head(
            id=f"cmpl-{answers[0].id}",
            model=body.model,
            created=int(time.time()),
            count=len(answers),
            per_prompt=body.n or 1,
            include_usage=body.include_usage(),
            scored=body.logprobs is not None,
        )
        echoes = [one.prompt or "" if body.echo else "" for one in asked]
        with self._front.running():
            if body.stream:
                form = Chunks(head, echoes)
                await Stream(request, form, self._front.config.server.keepalive).run(*answers)
                return None
            wholes = await gather(*answers)
        choices = [
            _choice(index, echo + whole.text, _Offsets(len(echo)).body(whole.logprobs), whole.reason)
            for index, (echo, whole) in enumerate(zip(echoes, wholes, strict=True))
        ]
        return respond(200, head.body("text_completion") | {"choices": choices, "usage": usage_body(head, wholes)})


def chat_requests(body: Body) -> list[ChatRequest]:
    """What the engine gets, ``n`` for each prompt. Raises ``BadRequest``."""
    _check(body)
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    return [one for prompt in prompts for one in variants(_request(body, prompt), body.n or 1)]


class Chunks:
    """The server-sent events of a streamed completion."""

    def __init__(self, head: Head, echoes: list[str]) -> None:
        self._body = head.body("text_completion") | ({"usage": None} if head.include_usage else {})
        self._held = echoes
        self._scored = head.scored
        self._offsets = [_Offsets(len(echo)) for echo in echoes]
        self._usages = Usages(head)
        self._include_usage = head.include_usage

    def events(self, index: int, batch: list[Any]) -> bytes:
        text = "".join(item.text for item in batch if isinstance(item, Delta))
        if text_waits(batch, scored=self._scored):
            self._held[index] += text
            text = ""
        tokens = [token for item in batch if isinstance(item, Logprobs) for token in item.tokens]
        ending = batch[-1] if batch and isinstance(batch[-1], Finished) else None
        if not (text or tokens or ending):
            return b""
        text, self._held[index] = self._held[index] + text, ""
        reason = ending.reason if ending else None
        out = self._chunk([_choice(index, text, self._offsets[index].body(tokens), reason)])
        if ending:
            self._usages.add(index, ending.usage, 0)
            if self._usages.complete:
                out += (self._chunk([], usage=self._usages.body()) if self._include_usage else b"") + DONE
        return out

    def silence(self, waiting: Waiting | None) -> bytes:
        return comment(waiting)

    def failure(self, error: PlimsollError) -> bytes:
        return b"data: " + _encode(envelope(error)) + b"\n\n"

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return b"data: " + _encode(self._body | {"choices": choices} | more) + b"\n\n"


class _Offsets:
    """The legacy form of log-probabilities, which tells where in the text each token begins."""

    def __init__(self, start: int) -> None:
        self._offset = start

    def body(self, tokens: list[TokenLogprob]) -> dict[str, Any] | None:
        if not tokens:
            return None
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [likelihood(token.logprob) for token in tokens],
            "top_logprobs": [{text: likelihood(logprob) for text, logprob in token.top} for token in tokens],
            "text_offset": offsets,
        }


def _choice(index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _check(body: Body) -> None:
    """Raises ``BadRequest`` for what would change the answer and is not done."""
    count = body.n or 1
    prompts = 1 if isinstance(body.prompt, str) else len(body.prompt)
    if prompts * count > _MAX_ANSWERS:
        raise refuse("n", f"is {count} for {prompts} prompts, but the answers may be {_MAX_ANSWERS} at most")
    if body.suffix:
        raise refuse("suffix", "is not supported: a prompt is only ever continued")
    if body.best_of not in (None, count):
        raise refuse("best_of", f"is {body.best_of}, but must be the same as n ({count})")
    if body.echo and body.logprobs is not None:
        raise refuse("logprobs", "can't be had with echo: the prompt's tokens are not scored")


def _request(body: Body, prompt: str) -> ChatRequest:
    return ChatRequest(
        messages=[],
        prompt=prompt,
        sampling=body.sampling(),
        max_tokens=body.max_tokens or _MAX_TOKENS,
        stop=body.stops(),
        logprobs=body.logprobs,
    )
