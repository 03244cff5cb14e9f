"""What a model's folder says of how it wants to be asked: sampling, tokens that end an answer, a chat template.

Each is kept in one of several files, by the tools that wrote the folder. A file that can't be read says nothing here:
whoever loads the model reports it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plimsoll.catalog.files import read_bytes, read_object

_SAMPLING = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_k": (0, 2**31 - 1),
    "min_p": (0, 1),
    "repetition_penalty": (0, 10),
}
NEUTRAL: dict[str, float] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
}
"""What holds where neither a request nor an entry nor a file says anything."""
_FILE = "generation_config.json"
_TEMPLATES = ("chat_template.json", "processor_config.json", "tokenizer_config.json")


# No set: a config.json may hold anything there, which need not be hashable.
ENCODER_TYPES = ("bert", "roberta", "xlm-roberta")
"""The values of ``model_type`` that Plimsoll's own encoder serves."""


def makes_embeddings(folder: Path) -> bool:
    """Whether the files say so: those of an encoder, or those that sentence-transformers puts beside any model."""
    config = _object(folder / "config.json")
    if is_cross_encoder(config):
        return False
    return config.get("model_type") in ENCODER_TYPES or (folder / "modules.json").is_file()


def scores_documents(folder: Path) -> bool:
    """Whether the files are those of a cross encoder."""
    return is_cross_encoder(_object(folder / "config.json"))


def is_cross_encoder(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is that of a cross encoder: a model with a head that scores a query with a document."""
    architectures = config.get("architectures")
    if not isinstance(architectures, list):
        return False
    return any(isinstance(one, str) and one.endswith("ForSequenceClassification") for one in architectures)


def head_labels(config: Mapping[str, Any]) -> int | None:
    """How many scores a model's head gives for a text; None where only the weights show it. A cross encoder has one."""
    named, count = config.get("id2label"), config.get("num_labels")
    if isinstance(named, dict) and named:
        return len(named)
    return count if isinstance(count, int) else None


def sampling_defaults(folder: Path) -> dict[str, float]:
    """The values in generation_config.json that a request may leave out, by their names in ``Sampling``."""
    given = _object(folder / _FILE)
    found: dict[str, float] = {}
    for name, (least, most) in _SAMPLING.items():
        value = given.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most:
            found[name] = int(value) if name == "top_k" else float(value)
    return {name: value for name, value in found.items() if value or name in ("temperature", "top_k", "min_p")}


def told_sampling(entry: Mapping[str, float], folder: Path | None) -> dict[str, dict[str, Any]]:
    """What holds for a request that leaves a value out, and where it is from: ``entry``, the file, or ``neutral``."""
    in_file = sampling_defaults(folder) if folder else {}
    ways = [(entry, "entry"), (in_file, _FILE), (NEUTRAL, "neutral")]
    found = {}
    for name in NEUTRAL:
        given, origin = next((given, origin) for given, origin in ways if name in given)
        found[name] = {"value": given[name], "from": origin}
    return found


def is_base(folder: Path) -> bool:
    """Whether a model goes on with texts and answers nobody: its files have no chat template."""
    settings = _object(folder / "tokenizer_config.json")
    return bool(settings) and not settings.get("chat_template_type") and chat_template(folder) is None


def end_ids(folder: Path) -> set[int]:
    """The tokens that end an answer, as config.json and generation_config.json have them, together."""
    config = _object(folder / "config.json")
    inner = config.get("text_config")
    found: set[int] = set()
    for part in (config, inner if isinstance(inner, dict) else {}, _object(folder / "generation_config.json")):
        value = part.get("eos_token_id")
        listed = value if isinstance(value, list) else [value]
        found |= {one for one in listed if isinstance(one, int) and not isinstance(one, bool) and one >= 0}
    return found


def chat_template(folder: Path) -> str | None:
    """The template of a folder, wherever it is kept; None for a base model."""
    try:
        return read_bytes(folder / "chat_template.jinja").decode(errors="replace")
    except (OSError, ValueError):
        pass
    for name in _TEMPLATES:
        given = _object(folder / name).get("chat_template")
        if isinstance(given, list):  # named ones
            named = {one.get("name"): one.get("template") for one in given if isinstance(one, dict)}
            given = named.get("default") or next(iter(named.values()), None)
        if isinstance(given, str) and given:
            return given
    return None


def _object(file: Path) -> dict[str, Any]:
    try:
        return read_object(file)
    except (OSError, ValueError):
        return {}
