"""One model's way to be asked and to answer, found out from its tokenizer when it is loaded."""

import contextlib
import logging
from dataclasses import dataclass, field, replace
from typing import Any

from plimsoll.engine.dialect.answer_plan import AnswerPlan
from plimsoll.engine.dialect.call_form import HARMONY, HERMES, CallForm
from plimsoll.engine.dialect.calls.marks import MARKS
from plimsoll.engine.dialect.conversation import Conversation
from plimsoll.engine.dialect.described import CALL_FORMS, openai_tools, plain_tools
from plimsoll.engine.dialect.form_probe import TOOLS, learn
from plimsoll.engine.dialect.needs import LAST_RESORT, Needs
from plimsoll.engine.dialect.plain_messages import plain
from plimsoll.engine.dialect.switches import Switches
from plimsoll.engine.dialect.template import Template, TemplateRefuses
from plimsoll.engine.dialect.template_probe import Probe
from plimsoll.engine.dialect.thoughts import Thoughts, find_thoughts
from plimsoll.engine.dialect.what_is_lost import lost
from plimsoll.engine.prompt_bounds import TookTooLong, time_limit
from plimsoll.engine.protocol import ChatRequest, Tool
from plimsoll.errors import BadRequest

_log = logging.getLogger(__name__)
# A template comes with the model: one that loops for ever must not keep all other requests waiting as long.
_TEMPLATE_S = 15.0
_PROBE_S = 5.0
_SENTINEL = "\x02QZHERE\x02"


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt's text, how its answer is to be read, and what was done to the conversation, in words."""

    text: str
    plan: AnswerPlan
    changes: list[str] = field(default_factory=list)


class Dialect:
    """Made once for a model. ``thoughts`` are its marks, None where it has none; ``channels`` as in ``AnswerPlan``."""

    def __init__(self, tokenizer: Any) -> None:
        self.template = Template(tokenizer)
        source, vocabulary = self.template.source, tokenizer.get_vocab()
        self.thoughts: Thoughts | None = find_thoughts(source, vocabulary)
        self._form = next((mark for mark in CALL_FORMS if mark in source or mark in vocabulary), "")
        self.channels = "<|message|>" in source and "<|start|>" in source
        self.recipients = (">>>" in source and "recipient" in source.lower()) or ">>>all" in source
        self._bare_native = (
            '"parameters":' in source and '{"name":' in source and not any(mark in source for mark in MARKS)
        )
        self.needs = Needs()
        self.form: CallForm = HERMES
        self._switches: Switches | None = None
        if self.template.exists and not self.template.took_too_long:
            try:
                with time_limit(_PROBE_S):
                    self.needs = Probe(self.template.render, self._form).needs()
                    self._switches = Switches(self.template, self.template.render)
                    self.form = self._call_form(tokenizer)
            except TookTooLong:
                self.template.took_too_long = True
        if self.template.took_too_long:
            _log.warning(
                "the model's chat template takes more than %.0f s for small conversations: nothing is known of what it "
                "needs, and each request that it can't render in %.0f s is refused",
                _PROBE_S,
                _TEMPLATE_S,
            )

    def _call_form(self, tokenizer: Any) -> CallForm:
        if self.channels and "<|constrain|>" in tokenizer.get_vocab():
            return HARMONY
        plan = replace(self._plan(), channels=self.channels and self.needs.tools != "described")
        added = getattr(tokenizer, "added_tokens_decoder", None) or {}
        marks = {number: token.content for number, token in added.items()}
        ends = [marks[end] for end in getattr(tokenizer, "eos_token_ids", ()) if end in marks]
        try:
            return learn(self._tell, plan, marks.values(), ends)
        except TemplateRefuses:
            return HERMES

    def _tell(self, message: dict[str, Any] | None) -> str:
        """A user's message and the assistant's answer, or its begin."""
        messages = plain([{"role": "user", "content": "hello"}, *([message] if message else [])])
        conversation = Conversation(messages, TOOLS, self.needs, self._form)
        told = conversation.offer(openai_tools(conversation.tools))
        return self.template.render(conversation.messages, add_generation_prompt=message is None, **told)

    def _plan(self) -> AnswerPlan:
        return AnswerPlan(self.thoughts, bare_native=self._bare_native, recipients=self.recipients)

    @property
    def switches(self) -> tuple[str, ...]:
        """The template's variables that turn thoughts on and off."""
        return self._switches.names if self._switches else ()

    @property
    def efforts(self) -> tuple[str, ...]:
        """The efforts that the template takes."""
        return self._switches.efforts if self._switches else ()

    def ask(self, request: ChatRequest) -> Asked:
        """The prompt of a request with messages. Raises ``BadRequest``."""
        messages = plain(request.messages)
        offered = request.tools if request.tool_choice != "none" else ()
        if not self.template.exists:
            lines = [f"{message['role']}: {message['content']}" for message in messages]
            return Asked("\n".join([*lines, "assistant:"]), AnswerPlan(self.thoughts))
        changes: list[str] = []
        kwargs = dict(request.template_kwargs)
        if self._switches is not None:
            kwargs = self._switches.kwargs(request.thinking, kwargs, changes)
        try:
            with time_limit(_TEMPLATE_S):
                text = self._render(messages, offered, kwargs, changes, goes_on=request.continue_last)
        except TookTooLong:
            raise BadRequest(
                f"The model's chat template took more than {_TEMPLATE_S:.0f} s for these messages and was stopped: "
                "send fewer or shorter ones, or look at the template in the model's files.",
                param="messages",
            ) from None
        plan = AnswerPlan(
            thoughts=self.thoughts,
            open=self._is_open(text),
            tools=offered,
            parallel=request.parallel_tool_calls,
            bare=request.format is None and not request.continue_last,
            continued=request.continue_last,
            bare_native=self._bare_native,
            channels=self.channels and self.needs.tools != "described",
            recipients=self.recipients,
        )
        return Asked(text, plan, changes)

    def _is_open(self, text: str) -> bool:
        return self.thoughts is not None and text.rstrip().endswith(self.thoughts.start.rstrip())

    def _text(self, messages: list[dict[str, Any]], *, goes_on: bool, **kwargs: Any) -> str:
        """The prompt; where the answer ``goes_on`` with the last message, it ends in the middle of that."""
        if not goes_on:
            return self.template.render(messages, **kwargs)
        *before, last = messages
        content = last["content"]
        marked = {**last, "content": f"{content}{_SENTINEL}"} if isinstance(content, str) else last
        with contextlib.suppress(TemplateRefuses):
            text, found, _ = self.template.render([*before, marked], add_generation_prompt=False, **kwargs).rpartition(
                _SENTINEL
            )
            if found:
                return text
        text = self.template.render(before, **kwargs)
        closing = self.thoughts.end if self.thoughts is not None and self._is_open(text) else ""
        return f"{text}{closing}{content}"

    def _render(
        self,
        messages: list[dict[str, Any]],
        offered: tuple[Tool, ...],
        kwargs: dict[str, Any],
        changes: list[str],
        *,
        goes_on: bool,
    ) -> str:
        """The first rendering that refuses and loses nothing; else the first that does not refuse."""
        last = replace(LAST_RESORT, content=self.needs.content)
        ways = [(self.needs, openai_tools), (self.needs, plain_tools), (last, openai_tools)]
        refused, incomplete = "", None
        told_of = tuple(tool for tool in offered if not tool.in_messages)
        for needs, form in ways:
            conversation = Conversation(messages, told_of, needs, self._form)
            if form is plain_tools and not conversation.tools:
                continue
            told = conversation.offer(form(conversation.tools))
            try:
                text = self._text(conversation.messages, goes_on=goes_on, **told, **kwargs)
            except TemplateRefuses as error:
                refused = refused or str(error)
                continue
            missing = lost(messages, told_of, text, self.thoughts)
            if not missing:
                changes += conversation.changes
                if form is plain_tools:
                    changes.append("the tools' schemas were put plainly, because the template can't read theirs")
                return text
            incomplete = incomplete or (text, conversation.changes, missing)
        if incomplete is None:
            raise BadRequest(f"The model's chat template refuses these messages: {refused}", param="messages")
        text, done, missing = incomplete
        _log.warning("the chat template leaves out %s", ", ".join(missing))
        changes += [*done, f"the template leaves out {', '.join(missing)}"]
        return text
