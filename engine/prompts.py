"""From a chat request to what the batch needs of it. No MLX arrays: this runs beside the step thread."""

import inspect
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from mlx_lm.tokenizer_utils import TokenizerWrapper

from plimsoll.engine import messages as chat
from plimsoll.engine.constraint import Constraint, Thinking
from plimsoll.engine.grammar import Grammars
from plimsoll.engine.kv_budget import Wish
from plimsoll.engine.layout import PLAIN, Layout, layout
from plimsoll.engine.long_text import beginning
from plimsoll.engine.protocol import ChatRequest, Sampling
from plimsoll.engine.time_limit import TookTooLong, time_limit
from plimsoll.engine.tool_calls import call_format, json_format, knows_tools, openai_tools
from plimsoll.errors import BadRequest, ContextTooLong

# What a template written for other messages raises: its author tests none of them.
_TEMPLATE_ERRORS = (
    *(TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError),
)
# A template comes with the model: one that loops for ever must not keep all other requests waiting as long.
_TEMPLATE_S = 15.0
_MOST_CHARACTERS = 64 << 20  # four times what a body may hold as it is configured


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request ready for the batch; ``max_tokens`` fits in the context, ``open_ended`` if the client gave none.

    ``constraint`` belongs to this one answer and has a state. ``continues`` is true where the answer goes on with the
    prompt's own text, so that a space at its beginning counts.
    """

    tokens: list[int]
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]
    open_ended: bool
    layout: Layout = PLAIN
    constraint: Constraint | None = None
    logprobs: int | None = None
    count_only: bool = False
    continues: bool = False

    @property
    def wish(self) -> Wish:
        return Wish(len(self.tokens), self.max_tokens, self.open_ended)


class PromptMaker:
    """Prepares the requests of one model; ``context`` is prompt and answer together, in tokens."""

    def __init__(self, tokenizer: TokenizerWrapper, context: int, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._context = context
        self._vocab_size = vocab_size
        self._grammars = Grammars(tokenizer, vocab_size)

    def prepare(self, request: ChatRequest) -> Prompt:
        """Apply the chat template, tokenise, compile the grammar.

        Raises ``BadRequest`` for what this model can't do, ``ContextTooLong`` where no room is left for an answer.
        """
        _check_choice(request)
        tokens, thinks = self._read(request)
        if request.count_only:
            return Prompt(tokens, 0, request.sampling, (), open_ended=False, count_only=True)
        room = self._context - len(tokens)
        if room <= 0:
            raise ContextTooLong(
                f"The prompt has {len(tokens)} tokens and the model's context is {self._context} tokens, which must "
                f"also hold the answer. Shorten the messages by at least {1 - room} tokens.",
                param="messages",
            )
        wanted = room if request.max_tokens is None else request.max_tokens
        if wanted < 1:
            raise BadRequest(f"max_tokens is {wanted}; it must be at least 1.", param="max_tokens")
        self._check_bias(request.sampling)
        return Prompt(
            tokens,
            min(wanted, room),
            request.sampling,
            tuple(text for text in request.stop if text),
            open_ended=request.max_tokens is None,
            layout=self._layout(request, thinks=thinks),
            constraint=self._constraint(request, thinks=thinks),
            logprobs=request.logprobs,
            continues=request.prompt is not None,
        )

    def _read(self, request: ChatRequest) -> tuple[list[int], bool]:
        """The prompt's tokens, and whether it ends inside the model's thoughts."""
        tokenizer = self._tokenizer
        if request.prompt is not None:
            tokens = self._tokens(request.prompt) or [tokenizer.bos_token_id]
            if tokens == [None]:
                raise BadRequest("prompt is empty, and this model can't begin without one.", param="prompt")
            return tokens, False
        messages = chat.plain(request.messages)
        offered = request.tools if request.tool_choice != "none" else ()
        native = knows_tools(tokenizer)
        if not native and (offered or any("tool_calls" in one or one["role"] == "tool" for one in messages)):
            messages = chat.with_tools_described(messages, offered)
        if not tokenizer.has_chat_template:
            lines = [f"{message['role']}: {message['content']}" for message in messages]
            return self._tokens("\n".join([*lines, "assistant:"])), False
        kwargs = self._template_kwargs(request)
        if offered and native:
            kwargs["tools"] = openai_tools(offered)
        # mlx-lm's wrapper would turn thinking on where nobody has asked; the template has a default of its own.
        own = tokenizer._chat_template is not None  # noqa: SLF001 - mlx-lm is pinned
        renderer = tokenizer if own or request.thinking is not None else tokenizer._tokenizer  # noqa: SLF001 - as above
        try:
            with time_limit(_TEMPLATE_S):
                text = str(renderer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **kwargs))
        except TookTooLong:
            raise BadRequest(
                f"The model's chat template took more than {_TEMPLATE_S:.0f} s for these messages and was stopped: "
                "send fewer or shorter ones, or look at the template in the model's files.",
                param="messages",
            ) from None
        except _TEMPLATE_ERRORS as error:
            reason = str(error) or type(error).__name__
            raise BadRequest(f"The model's chat template refuses these messages: {reason}", param="messages") from error
        if len(text) > _MOST_CHARACTERS:
            raise BadRequest(
                f"The model's chat template makes {len(text)} characters of these messages; at most {_MOST_CHARACTERS} "
                "are read. Look at the template in the model's files.",
                param="messages",
            )
        thinks = tokenizer.has_thinking and text.rstrip().endswith(tokenizer.think_start)
        # The template writes its own special tokens.
        return self._tokens(text, add_special_tokens=False), thinks

    def _tokens(self, text: str, **how: Any) -> list[int]:
        """Raises ``ContextTooLong`` for a text that is far too long before all of it is read."""
        encode = self._tokenizer.encode
        if len(beginning(lambda part: len(encode(part, **how)), text, self._context)) < len(text):
            raise ContextTooLong(
                f"The prompt has {len(text)} characters, which are more than {self._context} tokens, the model's "
                "context. Shorten the messages.",
                param="messages",
            )
        return list(encode(text, **how))

    def _template_kwargs(self, request: ChatRequest) -> dict[str, Any]:
        ours = inspect.signature(self._tokenizer._tokenizer.apply_chat_template).parameters  # noqa: SLF001 - as above
        if taken := sorted(ours.keys() & request.template_kwargs.keys()):
            raise BadRequest(
                f"chat_template_kwargs has {', '.join(taken)}, which the server sets itself. Leave it out.",
                param="chat_template_kwargs",
            )
        thinking = {} if request.thinking is None else {"enable_thinking": request.thinking}
        return {**request.template_kwargs, **thinking}

    def _layout(self, request: ChatRequest, *, thinks: bool) -> Layout:
        if request.prompt is not None:
            return PLAIN
        form = None
        if request.tools and request.tool_choice != "none":
            # A grammar knows one form of calls.
            free = request.tool_choice == "auto" and request.format is None
            form = call_format(self._tokenizer, request.tools) if free else json_format(request.tools)
        return layout(self._tokenizer, form, reasoning=thinks, parallel=request.parallel_tool_calls)

    def _constraint(self, request: ChatRequest, *, thinks: bool) -> Constraint | None:
        tools, choice, parallel = request.tools, request.tool_choice, request.parallel_tool_calls
        if tools and choice not in ("auto", "none"):
            matcher = self._grammars.calls(tools, choice, parallel=parallel)
        elif request.format is not None:
            callable_tools = tools if choice == "auto" else ()
            matcher = self._grammars.answer(request.format.schema, callable_tools, parallel=parallel)
        else:
            return None
        tokenizer, thinking = self._tokenizer, None
        if tokenizer.has_thinking and request.prompt is None and (thinks or request.thinking is not False):
            thinking = Thinking(tuple(tokenizer.think_start_tokens), tuple(tokenizer.think_end_tokens), thinks)
        return Constraint(matcher, frozenset(tokenizer.eos_token_ids), thinking)

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
