"""What a model's template makes of a request: ``python -m plimsoll.engine.prompt_report FOLDER < ChatRequest as JSON``.

A process of its own, for the command line loads no tokenizer. It prints one object: the prompt's text, how many tokens
it has, and what was changed in the conversation and why.
"""

import json
import sys
from pathlib import Path

import msgspec

from plimsoll.engine.dialect.dialect import Dialect
from plimsoll.engine.load.loading import TokenizerReader
from plimsoll.engine.protocol import ChatRequest
from plimsoll.errors import PlimsollError


def main() -> None:
    """Print the report; exit with 1 and the reason where the template refuses."""
    tokenizer = TokenizerReader().read(Path(sys.argv[1])).result()
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=ChatRequest)
    try:
        asked = Dialect(tokenizer).ask(request)
    except PlimsollError as error:
        print(error.message, file=sys.stderr)  # noqa: T201 - its only output
        sys.exit(1)
    tokens = tokenizer.encode(asked.text, add_special_tokens=False)
    print(json.dumps({"prompt": asked.text, "tokens": len(tokens), "changes": asked.changes}))  # noqa: T201 - as above


if __name__ == "__main__":
    main()
