"""What the sentence-transformers files beside a model say: how token states become one vector.

https://www.sbert.net/docs/sentence_transformer/usage/custom_models.html describes ``modules.json``.
"""

from pathlib import Path
from typing import Any, Literal

import msgspec

from plimsoll.catalog.model_card import ENCODER_TYPES
from plimsoll.errors import LoadFailed

Pooling = Literal["mean", "cls", "last"]

_POOLINGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}


class Recipe(msgspec.Struct, frozen=True):
    """How to make a vector; ``max_tokens`` is the longest input that the model was made for, None where not said."""

    pooling: Pooling
    normalize: bool = True
    max_tokens: int | None = None


class _Module(msgspec.Struct, frozen=True):
    type: str
    path: str = ""


def is_bert(path: Path) -> bool:
    """Whether it is an encoder of the BERT family."""
    return _read(path / "config.json").get("model_type") in ENCODER_TYPES


def read_recipe(path: Path, default: Pooling) -> Recipe:
    """The recipe of the model in the folder ``path``; without files it is ``default`` pooling and normalised.

    Raises ``LoadFailed`` for files that can't be read and for steps that are not known here.
    """
    file = path / "modules.json"
    if not file.is_file():
        return Recipe(default)
    try:
        modules = msgspec.json.decode(file.read_bytes(), type=list[_Module])
    except msgspec.MsgspecError as error:
        raise LoadFailed(f"{file} can't be read: {error}.") from None
    longest = _read(path / "sentence_bert_config.json").get("max_seq_length")
    pooling, normalize = default, False
    for module in modules:
        match module.type.rpartition(".")[2]:
            case "Transformer":
                pass
            case "Pooling":
                # Of a folder beside it alone: ".." is a name too.
                pooling = _pooling(path / Path(module.path).name.lstrip(".") / "config.json")
            case "Normalize":
                normalize = True
            case other:
                raise LoadFailed(f"The embedding model in {path} has a step {other!r}, which is not supported.")
    return Recipe(pooling, normalize, longest if isinstance(longest, int) and longest > 0 else None)


def _pooling(file: Path) -> Pooling:
    config = _read(file)
    chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    if isinstance(mode := config.get("pooling_mode"), str):  # as newer releases write it
        chosen = [key for key in _POOLINGS if key.split("_")[2] == mode] or [mode]
    if len(chosen) != 1 or chosen[0] not in _POOLINGS:
        known = ", ".join(_POOLINGS)
        raise LoadFailed(f"{file} asks for {' and '.join(chosen) or 'no pooling'}; supported is one of {known}.")
    return _POOLINGS[chosen[0]]


def _read(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no file."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return {}
    except msgspec.MsgspecError as error:
        raise LoadFailed(f"{file} can't be read: {error}.") from None
