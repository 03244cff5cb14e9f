"""What a model's files say of it: family, size, quantisation, context, abilities. ``facts`` alone reads the disk."""

import hashlib
import re
from collections.abc import Iterable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from plimsoll.catalog.disk import DISK, DiskSilent
from plimsoll.catalog.entries import CatalogModel
from plimsoll.catalog.files import local_folder, problem, read_bytes, read_object
from plimsoll.catalog.installed import place
from plimsoll.catalog.model_card import chat_template, head_labels, is_base, is_cross_encoder, told_sampling
from plimsoll.catalog.source import ModelSource, split_parts
from plimsoll.catalog.weigh import text_part, weigh_source

_COUNTS = {
    "block_count": ("num_hidden_layers", "n_layer"),
    "embedding_length": ("hidden_size", "n_embd"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads",),
}
_ENCODERS = frozenset({"bert", "roberta", "xlm-roberta", "modernbert", "nomic_bert", "distilbert"})
_GGUF_TYPE = re.compile(r"[.-]((?:I?Q\d(?:_\w+)?)|BF16|F16|F32)(?:-\d{5}-of-\d{5})?\.gguf$", re.ASCII | re.IGNORECASE)


class Facts(msgspec.Struct, frozen=True):
    """What is known of one model; empty or 0 where its files are not here."""

    name: str
    format: str
    digest: str
    size_bytes: int = 0
    modified_s: float = 0.0
    parameters: int = 0
    context: int = 0
    config: dict[str, Any] = {}
    template: str = ""
    embeddings: bool = False
    # The name of a GGUF file.
    file: str = ""
    no_template: bool = False
    sampling: dict[str, dict[str, Any]] = {}

    @property
    def family(self) -> str:
        """The architecture, such as llama."""
        return str(self.config.get("model_type", ""))

    @property
    def quantization(self) -> str:
        """``Q4``, ``BF16``, or as a GGUF file's name says it: ``Q4_K_M``; empty where it is not known."""
        named = _GGUF_TYPE.search(self.file)
        return named[1].upper() if named else _quantization(self.config)

    @property
    def is_base(self) -> bool:
        """Whether it is a base model, which goes on with a text and answers nobody: it has no chat template."""
        encodes = self.embeddings or self.family in _ENCODERS or is_cross_encoder(self.config)
        return self.no_template and not encodes

    @property
    def capabilities(self) -> list[str]:
        """Rerank, or embedding, or completion and tools, and thinking where the chat template knows it.

        A classifier of several labels can do nothing that is offered here.
        """
        if is_cross_encoder(self.config):
            return ["rerank"] if head_labels(self.config) in (1, None) else []
        if self.embeddings or self.family in _ENCODERS:
            return ["embedding"]
        if self.is_base:
            return ["completion"]
        # The engine describes tools itself where a template does not.
        thinks = "enable_thinking" in self.template or "<think>" in self.template
        return ["completion", "tools", *(["thinking"] if thinks else [])]

    def called(self, name: str) -> "Facts":
        """The same under another name."""
        return msgspec.structs.replace(self, name=name, digest=_digest(name, self.digest))

    def details(self) -> dict[str, Any]:
        """Ollama's summary."""
        return {
            "parent_model": "",
            "format": self.format,
            "family": self.family,
            "families": [self.family] if self.family else [],
            "parameter_size": _short(self.parameters),
            "quantization_level": self.quantization,
        }

    def model_info(self) -> dict[str, Any]:
        """The figures under GGUF's names."""
        text = text_part(self.config)
        info: dict[str, Any] = {"general.architecture": self.family, "general.parameter_count": self.parameters}
        if self.context:
            info[f"{self.family}.context_length"] = self.context
        for ours, theirs in _COUNTS.items():
            if found := next((text[key] for key in theirs if isinstance(text.get(key), int)), None):
                info[f"{self.family}.{ours}"] = found
        return info


def ask_facts(models: Iterable[CatalogModel], cache_dir: Path) -> "dict[str, Future[Facts]]":
    """Have the facts of all ``models`` read, by name, each on a thread of its disk; see ``answered``."""
    return {one.source.name: DISK.ask(place(one.source, cache_dir), partial(facts, one, cache_dir)) for one in models}


def answered(future: "Future[Facts]") -> Facts | None:
    """The result of ``future``; None where the disk has not answered."""
    if not future.done() or future.cancelled():
        return None
    return None if isinstance(future.exception(), DiskSilent) else future.result()


def facts(model: CatalogModel, cache_dir: Path) -> Facts:
    """What the files of ``model`` say; files that are not here or can't be read say nothing."""
    source = model.source
    folder = _folder(source, cache_dir)
    if folder is None:
        return _without_folder(model)
    try:
        config = read_object(folder / "config.json")
        encoded = msgspec.json.encode(config, order="sorted")
        weight = weigh_source(source, cache_dir)
        sizes = {file.name: file.stat().st_size for file in sorted(folder.glob("model*.safetensors"))}
        modified_s = (folder / "config.json").stat().st_mtime
    except (OSError, ValueError, TypeError, RecursionError):
        return _without_folder(model)
    return Facts(
        source.name,
        _form(model),
        _digest(source.name, encoded, *(f"{name}:{size}" for name, size in sizes.items())),
        sum(sizes.values()),
        modified_s,
        weight.dense_bytes // 4 if weight else 0,
        model.context or (weight.context if weight else 0) or 0,
        config,
        _template(model, folder),
        model.embeddings,
        _file(source),
        not model.chat_template and is_base(folder),
        told_sampling(dict(model.defaults.sampling), folder),
    )


def _folder(source: ModelSource, cache_dir: Path) -> Path | None:
    try:
        folder = local_folder(source, cache_dir)
    except OSError:
        return None
    return folder if folder and problem(folder) is None else None


def _without_folder(model: CatalogModel) -> Facts:
    if model.source.kind == "gguf":
        try:
            stats = [part.stat() for part in split_parts(Path(model.source.location))]
        except OSError:
            pass
        else:
            return without_files(model, sum(one.st_size for one in stats), max(one.st_mtime for one in stats))
    return without_files(model)


def without_files(model: CatalogModel, size: int = 0, modified_s: float = 0.0) -> Facts:
    """What is known of ``model`` without a look at the disk."""
    source = model.source
    digest = _digest(source.name, source.kind, source.location, str(size))
    context = model.context or 0
    return Facts(
        source.name,
        _form(model),
        digest,
        size,
        modified_s,
        context=context,
        embeddings=model.embeddings,
        file=_file(source),
    )


def _file(source: ModelSource) -> str:
    return Path(source.location).name if source.kind == "gguf" else ""


def _form(model: CatalogModel) -> str:
    return "gguf" if model.source.kind == "gguf" else "mlx"


def _digest(*parts: str | bytes) -> str:
    """A SHA-256 that changes with what it is made of; the weights themselves are too large to read for it.

    Clients take two entries of one digest for the same model and ask the one that they saw first.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update((part.encode() if isinstance(part, str) else part) + b"\0")
    return digest.hexdigest()


def _template(model: CatalogModel, folder: Path) -> str:
    """The chat template: the entry's own file, or the one that the model's files hold."""
    if model.chat_template:
        try:
            return read_bytes(Path(model.chat_template)).decode(errors="replace")
        except (OSError, ValueError):
            return ""
    return chat_template(folder) or ""


def _quantization(config: dict[str, Any]) -> str:
    """``Q4`` for 4 bits, else the floats' name as Ollama writes it."""
    quantized = config.get("quantization") or config.get("quantization_config") or {}
    if isinstance(quantized, dict) and isinstance(bits := quantized.get("bits"), int):
        return f"Q{bits}"
    names = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
    return names.get(str(config.get("torch_dtype") or config.get("dtype")), "")


def _short(count: int) -> str:
    """Parameters as people say them: 135M, 7.6B."""
    if not count:
        return ""
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.0f}M"
