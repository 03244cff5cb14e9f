"""What a model's files say about it, as Ollama's clients ask. Reads the disk: call it on a thread."""

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from plimsoll.catalog import CatalogModel
from plimsoll.catalog.files import local_folder, problem
from plimsoll.catalog.strange import read_bytes, read_object
from plimsoll.catalog.weigh import text_part, weigh_source
from plimsoll.engine.protocol import ModelSource

_COUNTS = {
    "block_count": ("num_hidden_layers", "n_layer"),
    "embedding_length": ("hidden_size", "n_embd"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads",),
}
_ENCODERS = frozenset({"bert", "roberta", "xlm-roberta", "modernbert", "nomic_bert", "distilbert"})


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

    @property
    def family(self) -> str:
        """The architecture, such as llama."""
        return str(self.config.get("model_type", ""))

    @property
    def capabilities(self) -> list[str]:
        """Embedding, or completion and tools, and thinking where the chat template knows it."""
        if self.embeddings or self.family in _ENCODERS:
            return ["embedding"]
        # The engine describes tools itself where a template does not.
        thinks = "enable_thinking" in self.template or "<think>" in self.template
        return ["completion", "tools", *(["thinking"] if thinks else [])]

    def details(self) -> dict[str, Any]:
        """Ollama's summary."""
        return {
            "parent_model": "",
            "format": self.format,
            "family": self.family,
            "families": [self.family] if self.family else [],
            "parameter_size": _short(self.parameters),
            "quantization_level": _quantization(self.config),
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


def facts(model: CatalogModel, cache_dir: Path) -> Facts:
    """What the files of ``model`` say; files that are not here or can't be read say nothing."""
    source = model.source
    form = "gguf" if source.kind == "gguf" else "mlx"
    folder = _folder(source, cache_dir)
    if folder is None:
        return _without_files(model, form)
    try:
        config = read_object(folder / "config.json")
        encoded = msgspec.json.encode(config, order="sorted")
        weight = weigh_source(source, cache_dir)
        sizes = {file.name: file.stat().st_size for file in sorted(folder.glob("model*.safetensors"))}
        modified_s = (folder / "config.json").stat().st_mtime
    except (OSError, ValueError, TypeError, RecursionError):
        return _without_files(model, form)
    return Facts(
        source.name,
        form,
        _digest(encoded, *(f"{name}:{size}" for name, size in sizes.items())),
        sum(sizes.values()),
        modified_s,
        weight.dense_bytes // 4 if weight else 0,
        model.context or (weight.context if weight else 0) or 0,
        config,
        _template(folder),
        model.embeddings,
    )


def _folder(source: ModelSource, cache_dir: Path) -> Path | None:
    try:
        folder = local_folder(source, cache_dir)
    except OSError:
        return None
    return folder if folder and problem(folder) is None else None


def _without_files(model: CatalogModel, form: str) -> Facts:
    source, size, modified_s = model.source, 0, 0.0
    if source.kind == "gguf":
        try:
            stat = Path(source.location).stat()
        except OSError:
            pass
        else:
            size, modified_s = stat.st_size, stat.st_mtime
    digest = _digest(source.kind, source.location, str(size))
    return Facts(source.name, form, digest, size, modified_s, context=model.context or 0, embeddings=model.embeddings)


def _digest(*parts: str | bytes) -> str:
    """A SHA-256 that changes with what it is made of; the weights themselves are too large to read for it."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update((part.encode() if isinstance(part, str) else part) + b"\0")
    return digest.hexdigest()


def _template(folder: Path) -> str:
    """The chat template, from where Hugging Face's tokenizers keep it."""
    try:
        return read_bytes(folder / "chat_template.jinja").decode()
    except (OSError, ValueError):
        pass
    try:
        config = read_object(folder / "tokenizer_config.json")
    except (OSError, ValueError):
        return ""
    template = config.get("chat_template")
    return template if isinstance(template, str) else ""


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
