"""From a chat request to what the batch needs of it. No MLX arrays: this runs beside the step thread."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import msgspec
from mlx_lm.tokenizer_utils import TokenizerWrapper

from plimsoll.engine.chat.fill_in import fill_in
from plimsoll.engine.chat.grammar import Grammar, Grammars, Uncompiled
from plimsoll.engine.chat.grammar_constraint import Constraint, Thinking
from plimsoll.engine.chat.prefix_store.snapshot_marks import Marks
from plimsoll.engine.chat.thought_budget import ThoughtBudget
from plimsoll.engine.dialect.answer_plan import PLAIN, AnswerPlan
from plimsoll.engine.dialect.dialect import Dialect
from plimsoll.engine.mlx_lm_internals import bare_tokenizer
from plimsoll.engine.prompt_bounds import beginning
from plimsoll.engine.protocol import ChatRequest, Sampling
from plimsoll.errors import BadRequest, ContextTooLong

_MOST_CHARACTERS = 64 << 20  # four times what a body may hold as it is configured


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request ready for the batch; ``max_tokens`` fits in the context.

    ``marks`` are where a snapshot of the KV cache would serve other prompts.
    ``constraint`` and ``thought_budget`` belong to this one answer and have a state. ``continues`` is true where the
    answer goes on with the prompt's own text, so that a space at its beginning counts. ``so_far`` are tokens of the
    answer that an earlier worker has sent. With ``score`` the log-probabilities of the prompt are wanted, too.
    """

    tokens: list[int]
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]
    plan: AnswerPlan = PLAIN
    constraint: Constraint | None = None
    thought_budget: ThoughtBudget | None = None
    logprobs: int | None = None
    count_only: bool = False
    continues: bool = False
    marks: tuple[int, ...] = ()
    so_far: tuple[int, ...] = ()
    score: bool = False


class PromptMaker:
    """Prepares the requests of one model; ``context`` is prompt and answer together, in tokens.

    Its tokens are those below ``vocab_size``.

    ``sampling`` holds for requests that say nothing of it.
    """

    def __init__(
        self,
        tokenizer: TokenizerWrapper,
        context: int,
        vocab_size: int,
        *,
        sampling: Mapping[str, float] | None = None,
    ) -> None:
        self._sampling = dict(sampling or {})
        self._tokenizer = tokenizer
        self._context = context
        self._vocab_size = vocab_size
        self._grammars = Grammars(tokenizer, vocab_size)
        # Found out here, while the model is loaded, and not by the first request.
        self.dialect = Dialect(tokenizer)
        self.marks: Marks | None = None
        """Set for a model that needs snapshots of its KV caches."""

    def prepare(self, request: ChatRequest, so_far: Sequence[int] = ()) -> Prompt | Uncompiled:
        """Apply the chat template, tokenise; a grammar is looked up, and compiled by whoever has the time.

        Raises ``BadRequest`` for what this model can't do, ``ContextTooLong`` where no room is left for an answer.
        """
        _check_choice(request)
        request = self._with_defaults(request)
        tokens, plan = self._read(request)
        self._check_tokens(tokens)
        if request.count_only:
            return Prompt(tokens, 0, request.sampling, (), count_only=True)
        room = self._context - len(tokens)
        if room <= 0:
            raise ContextTooLong(
                f"prompt is too long: {len(tokens)} tokens > {self._context - 1} maximum. This model's maximum context "
                f"length is {self._context} tokens, which must also hold the answer. Shorten the messages by at least "
                f"{1 - room} tokens.",
                param="messages",
            )
        wanted = room if request.max_tokens is None else request.max_tokens
        if wanted < (0 if request.score_prompt else 1):
            raise BadRequest(f"max_tokens is {wanted}; it must be at least 1.", param="max_tokens")
        self._check_bias(request.sampling)
        thinking = self._thinking(plan) if request.prompt is None else None
        prompt = Prompt(
            tokens,
            min(wanted, room),
            request.sampling,
            tuple(text for text in request.stop if text),
            plan=plan,
            thought_budget=_budget(request, thinking),
            logprobs=request.logprobs,
            continues=request.prompt is not None or request.continue_last,
            marks=self.marks.of(request, tokens) if self.marks else (),
            so_far=tuple(so_far),
            score=request.score_prompt,
        )
        if (grammar := self._grammar(request)) is None:
            return prompt
        ends = frozenset(self._tokenizer.eos_token_ids)
        allowed = thinking if plan.open or request.thinking is not False else None
        uncompiled = Uncompiled(
            self._grammars, grammar, lambda matcher: replace(prompt, constraint=Constraint(matcher, ends, allowed))
        )
        return cast("Prompt", uncompiled.prepared()) if uncompiled.is_known else uncompiled

    def render(self, request: ChatRequest) -> list[int]:
        """The tokens that the template makes of a request; raises ``BadRequest`` where it refuses."""
        return self._read(request)[0]

    def _with_defaults(self, request: ChatRequest) -> ChatRequest:
        if request.given is None or not self._sampling:
            return request
        left_out = {name: value for name, value in self._sampling.items() if name not in request.given}
        return msgspec.structs.replace(request, sampling=msgspec.structs.replace(request.sampling, **left_out))

    def _read(self, request: ChatRequest) -> tuple[list[int], AnswerPlan]:
        """The prompt's tokens, and how the answer is to be read."""
        tokenizer = self._tokenizer
        if request.prompt is not None:
            tokens = self._raw(request.prompt, request.suffix) or [tokenizer.bos_token_id]
            if tokens == [None]:
                raise BadRequest("prompt is empty, and this model can't begin without one.", param="prompt")
            return tokens, PLAIN
        self._check_kwargs(request)
        asked = self.dialect.ask(request)
        if len(asked.text) > _MOST_CHARACTERS:
            raise BadRequest(
                f"The model's chat template makes {len(asked.text)} characters of these messages; at most "
                f"{_MOST_CHARACTERS} are read. Look at the template in the model's files.",
                param="messages",
            )
        # The template writes its own special tokens; a model without one gets those of its tokenizer.
        how = {"add_special_tokens": False} if self.dialect.template.exists else {}
        return self._tokens(asked.text, **how), asked.plan

    def _raw(self, prompt: str | list[int], suffix: str) -> list[int]:
        """The tokens of a prompt that is read without the template."""
        if isinstance(prompt, list) and any(not 0 <= token < self._vocab_size for token in prompt):
            raise BadRequest(
                f"prompt has token ids beyond the model's, which are 0 to {self._vocab_size - 1}.", param="prompt"
            )
        tokens = prompt if isinstance(prompt, list) else self._tokens(prompt)
        if not suffix:
            return tokens
        return fill_in(self._tokenizer, tokens, self._tokens(suffix, add_special_tokens=False))

    def _tokens(self, text: str, **how: Any) -> list[int]:
        """Raises ``ContextTooLong`` for a text that is far too long before all of it is read."""
        encode = self._tokenizer.encode
        known = len(beginning(lambda part: len(encode(part, **how)), text, self._context))
        if known < len(text):
            about = max(self._context + 1, self._context * len(text) // max(1, known))
            raise ContextTooLong(
                f"prompt is too long: {about} tokens > {self._context - 1} maximum, estimated from {len(text)} "
                f"characters. This model's maximum context length is {self._context} tokens. Shorten the messages.",
                param="messages",
            )
        return list(encode(text, **how))

    def _check_kwargs(self, request: ChatRequest) -> None:
        ours = inspect.signature(bare_tokenizer(self._tokenizer).apply_chat_template).parameters
        if taken := sorted(ours.keys() & request.template_kwargs.keys()):
            raise BadRequest(
                f"chat_template_kwargs has {', '.join(taken)}, which the server sets itself. Leave it out.",
                param="chat_template_kwargs",
            )

    def _grammar(self, request: ChatRequest) -> Grammar | None:
        tools, choice, parallel = request.tools, request.tool_choice, request.parallel_tool_calls
        if request.prompt is not None and request.format is None:
            return None
        form = self.dialect.form
        if tools and choice not in ("auto", "none"):
            return self._grammars.calls(tools, choice, parallel=parallel, form=form)
        callable_tools = tools if choice == "auto" else ()
        if request.format is not None:
            return self._grammars.answer(request.format.schema, callable_tools, parallel=parallel, form=form)
        if any(tool.strict for tool in callable_tools):
            return self._grammars.strict(callable_tools, parallel=parallel, form=form)
        return None

    def _thinking(self, plan: AnswerPlan) -> Thinking | None:
        """The model's thoughts as tokens; gpt-oss has a channel for them."""
        if plan.channels:
            start, end = "<|channel|>analysis<|message|>", "<|end|>"
        elif plan.thoughts is not None:
            start, end = plan.thoughts.start, plan.thoughts.end
        else:
            return None
        return Thinking(self._mark(start), self._mark(end), plan.open, end, self._tokenizer.decode)

    def _mark(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def _check_tokens(self, tokens: list[int]) -> None:
        if not tokens:
            raise BadRequest(
                "The prompt is empty after the chat template: the template makes no text of these messages. Send a "
                "message with text, or look at the template in the model's files.",
                param="messages",
            )
        # MLX reads beyond the table for such an id, without a word.
        if not 0 <= min(tokens) <= max(tokens) < self._vocab_size:
            wrong = next(token for token in tokens if not 0 <= token < self._vocab_size)
            raise BadRequest(
                f"The model's tokenizer makes token {wrong} of this text, and the model's tokens are 0 to "
                f"{self._vocab_size - 1}. The tokenizer's files belong to another model: fetch or convert it again.",
                param="messages",
            )

    def _check_bias(self, sampling: Sampling) -> None:
        if wrong := [token for token in sampling.logit_bias if not 0 <= token < self._vocab_size]:
            raise BadRequest(
                f"logit_bias has token {wrong[0]}; this model's tokens are 0 to {self._vocab_size - 1}.",
                param="logit_bias",
            )


def _check_choice(request: ChatRequest) -> None:
    if request.prompt is not None and request.tools:
        raise BadRequest("A raw prompt takes no tools; send messages.", param="tools")
    choice, names = request.tool_choice, [tool.name for tool in request.tools]
    if choice in ("auto", "none") or choice in names or (choice == "required" and names):
        return
    offered = f"The tools are {', '.join(names)}." if names else "There are no tools in the request."
    raise BadRequest(f"tool_choice is {choice}. {offered}", param="tool_choice")


def _budget(request: ChatRequest, thinking: Thinking | None) -> ThoughtBudget | None:
    if thinking is None or request.thinking_budget is None:
        return None
    return ThoughtBudget(thinking, request.thinking_budget)
