"""A tokenizer that has nothing but a chat template."""

import json

from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Tokenizer:
    """As much of mlx-lm's as a dialect asks for."""

    has_chat_template = True
    _chat_template = None

    def __init__(self, template):
        self.chat_template = template
        self._tokenizer = self
        environment = ImmutableSandboxedEnvironment()
        environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
        self._template = environment.from_string(template)

    def get_vocab(self):
        return {}

    def apply_chat_template(self, messages, *, tokenize, **kwargs):
        def refuse(why):
            raise TemplateError(why)

        return self._template.render(messages=messages, raise_exception=refuse, **kwargs)
