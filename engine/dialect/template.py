"""A model's chat template: what it reads, and what it makes of messages."""

import json
from typing import Any

from jinja2 import meta, nodes
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from plimsoll.engine.mlx_lm_internals import bare_tokenizer, has_own_template

# What a template written for other messages raises: its author tests none of them.
_ERRORS = (
    *(TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError),
)
_TOO_LONG = "plimsoll_template_took_too_long"  # kept by the tokenizer, whose template several objects look at


class TemplateRefuses(Exception):
    """The template raised; the text says what."""


class Template:
    """The template of a tokenizer of mlx-lm's; ``source`` is its text, empty where there is none or it is code.

    ``variables`` are the names that it reads besides those that every template is given. ``took_too_long`` is whether
    a small conversation has taken it longer than it may: what else small ones would tell is not worth the same wait.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._code = has_own_template(tokenizer)
        given = None if self._code else getattr(tokenizer, "chat_template", None)
        self.sources: dict[str, str] = given if isinstance(given, dict) else {"default": given} if given else {}
        self.source = "\n".join(self.sources.values())
        self.is_code = self._code or (bool(tokenizer.has_chat_template) and not self.sources)
        self.exists = bool(tokenizer.has_chat_template)
        self.variables, self.constants = _read(self.sources)

    @property
    def took_too_long(self) -> bool:
        return bool(getattr(self._tokenizer, _TOO_LONG, False))

    @took_too_long.setter
    def took_too_long(self, value: bool) -> None:
        setattr(self._tokenizer, _TOO_LONG, value)

    def render(self, messages: list[dict[str, Any]], **kwargs: Any) -> str:
        """The prompt's text. Raises ``TemplateRefuses``."""
        kwargs.setdefault("add_generation_prompt", True)
        # mlx-lm's wrapper would turn thinking on where nobody has asked; the template has a default of its own.
        asked = self._code or "enable_thinking" in kwargs
        renderer = self._tokenizer if asked else bare_tokenizer(self._tokenizer)
        try:
            return str(renderer.apply_chat_template(messages, tokenize=False, **kwargs))
        except _ERRORS as error:
            raise TemplateRefuses(str(error) or type(error).__name__) from error

    def reads(self, name: str) -> bool:
        """Whether a variable of this name can change anything; of a template that is code nobody knows."""
        return self.is_code or name in self.variables


def _read(sources: dict[str, str]) -> tuple[frozenset[str], dict[str, frozenset[str]]]:
    """The variables that templates read, and the texts that each is compared with."""
    names: set[str] = set()
    compared: dict[str, set[str]] = {}
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    for source in sources.values():
        try:
            tree = environment.parse(_without_generation(source))
            names |= meta.find_undeclared_variables(tree)
        except (TemplateError, RecursionError):
            continue  # it fails as a whole: that is said to the request that it is rendered for
        # A variable that the template sets where it was left out counts as declared.
        names |= {node.name for test in tree.find_all(nodes.Test) for node in test.find_all(nodes.Name)}
        for compare in tree.find_all(nodes.Compare):
            values = [node.value for node in compare.find_all(nodes.Const)]
            texts = {
                one
                for value in values
                for one in (value if isinstance(value, tuple) else (value,))
                if isinstance(one, str)
            }
            for name in {node.name for node in compare.find_all(nodes.Name)}:
                compared.setdefault(name, set()).update(texts)
    return frozenset(names), {name: frozenset(texts) for name, texts in compared.items()}


def _without_generation(source: str) -> str:
    """Without the tags that transformers adds to jinja's."""
    for tag in ("generation", "endgeneration"):
        for left in ("{%-", "{%"):
            for right in ("-%}", "%}"):
                source = source.replace(f"{left} {tag} {right}", "")
    return source


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
