"""Models that want code of their own to be run are refused; nothing switches that off."""

from pathlib import Path
from typing import Any

from plimsoll.catalog.strange import read_object
from plimsoll.errors import LoadFailed

# mlx-lm makes module names of its own package out of these.
_MODULES = {"config.json": ("model_type",), "tokenizer_config.json": ("chat_template_type", "tool_parser_type")}


def refuse_code(folder: Path) -> None:
    """Raise ``LoadFailed`` where the model in ``folder`` names a Python file, or a module that is no plain name.

    transformers' ``auto_map`` is passed over where a class of its own will do, and refused by transformers where not.
    """
    for name, keys in _MODULES.items():
        config = _read(folder / name)
        if "model_file" in config:
            raise LoadFailed(
                f"{folder / name} asks to run the Python file {str(config['model_file'])[:80]!r}. A model's own code "
                "is never run here: use a model of a type that mlx-lm knows."
            )
        for key in keys:
            value = config.get(key)
            if value is not None and not (isinstance(value, str) and value.replace("-", "_").isidentifier()):
                raise LoadFailed(f"{folder / name}: {key} is {str(value)[:80]!r}, which is no name of a known kind.")


def _read(file: Path) -> dict[str, Any]:
    try:
        return read_object(file)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise LoadFailed(f"{file.parent}: {error}.") from None
