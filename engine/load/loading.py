"""Loads a model that mlx-lm knows, with its tokenizer and its adapter."""

import contextlib
import json
import logging
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx import nn
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_config, load_model, load_tokenizer

from plimsoll.catalog.files import read_object
from plimsoll.catalog.source import Progress
from plimsoll.engine.chat.prefix_store.pieces import can_batch
from plimsoll.engine.dialect.model_files import complete
from plimsoll.engine.load import adapters
from plimsoll.engine.load.cpu_math import make_cpu_fast
from plimsoll.engine.load.weights import describe_model, on_the_cpu, read_weights
from plimsoll.engine.protocol import EngineOptions, ModelInfo
from plimsoll.errors import LoadFailed

_log = logging.getLogger(__name__)
# mlx-lm makes module names of its own package out of these.
_MODULES = {"config.json": ("model_type",), "tokenizer_config.json": ("chat_template_type", "tool_parser_type")}


def refuse_code(folder: Path) -> None:
    """Raise ``LoadFailed`` where the model in ``folder`` names a Python file, or a module that is no plain name.

    transformers' ``auto_map`` is passed over where a class of its own will do, and refused by transformers where not.
    """
    for name, keys in _MODULES.items():
        config = _read_class(folder / name)
        if "model_file" in config:
            raise LoadFailed(
                f"{folder / name} asks to run the Python file {str(config['model_file'])[:80]!r}. A model's own code "
                "is never run here: use a model of a type that mlx-lm knows."
            )
        for key in keys:
            value = config.get(key)
            if value is not None and not (isinstance(value, str) and value.replace("-", "_").isidentifier()):
                raise LoadFailed(f"{folder / name}: {key} is {str(value)[:80]!r}, which is no name of a known kind.")


def _read_class(file: Path) -> dict[str, Any]:
    try:
        return read_object(file)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise LoadFailed(f"{file.parent}: {error}.") from None


_Files = list[tuple[str, int, int]]


class TokenizerReader:
    """At most one tokenizer, read or being read; may be asked for before its model is to be loaded for certain."""

    def __init__(self) -> None:
        self._files: _Files | None = None
        self._reading: Future[TokenizerWrapper] | None = None

    def read(self, folder: Path) -> Future[TokenizerWrapper]:
        """That of the model in ``folder``: begun now, or before if its files are still the same. Raises ``OSError``."""
        files = _files(folder)
        if self._reading is None or files != self._files:
            thread = ThreadPoolExecutor(1, "tokenizer")
            self._files, self._reading = files, thread.submit(_read_tokenizer, folder)
            thread.shutdown(wait=False)
        return self._reading


def _files(folder: Path) -> _Files:
    found = [
        (str(file), file.stat())
        for pattern in ("*token*", "*config.json", "*template*")
        for file in folder.glob(pattern)
    ]
    return sorted((name, stat.st_mtime_ns, stat.st_size) for name, stat in found)


def _read_tokenizer(folder: Path) -> TokenizerWrapper:
    config: dict[str, Any] = load_config(folder)
    # Said outright: where it is left open, transformers asks on the terminal.
    try:
        tokenizer = load_tokenizer(folder, {"trust_remote_code": False}, eos_token_ids=config.get("eos_token_id"))
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise LoadFailed(
                f"The tokenizer in {folder} wants code of its own to be run, which is never done here: use a model "
                "whose tokenizer_config.json names a class of transformers."
            ) from None
        found = _read_plainly(folder, config)
        if found is None:
            raise
        _log.warning("the tokenizer in %s was read without its own class, for that failed: %s", folder, error)
        tokenizer = found
    complete(tokenizer, folder)
    # Were one set, every encode would change the shared Rust object for a moment, and a decode on the step thread in
    # that moment raises "Already borrowed".
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        backend.no_truncation()
        backend.no_padding()
    return tokenizer


def _read_plainly(folder: Path, config: dict[str, Any]) -> TokenizerWrapper | None:
    """The tokenizer of tokenizer.json alone, where its settings are not to this version's liking; None without one.

    Folders written by other versions of transformers name classes that are unknown here, keep lists where objects are
    wanted, or nulls in config.json.
    """
    if not (folder / "tokenizer.json").is_file():
        return None
    try:
        given = read_object(folder / "tokenizer_config.json")
    except (OSError, ValueError):
        given = {}
    kept = {key: value for key, value in given.items() if value is not None and key not in ("auto_map", "model_type")}
    extra = kept.pop("extra_special_tokens", None)
    if isinstance(extra, list):
        kept["additional_special_tokens"] = extra
    with tempfile.TemporaryDirectory(prefix="plimsoll-tokenizer-") as name:
        plain = Path(name)
        for file in (*folder.glob("tokenizer.json"), *folder.glob("*template*.jinja")):
            (plain / file.name).symlink_to(file.absolute())
        (plain / "tokenizer_config.json").write_text(json.dumps({**kept, "tokenizer_class": "PreTrainedTokenizerFast"}))
        (plain / "config.json").write_text(json.dumps({"model_type": "llama"}))
        with contextlib.suppress(Exception):  # what was wrong at first is what is told
            return load_tokenizer(plain, {"trust_remote_code": False}, eos_token_ids=config.get("eos_token_id"))
    return None


if TYPE_CHECKING:
    from plimsoll.engine.group.rank import Rank

# mlx-lm 0.32 gives these other answers when prompts of different lengths share a batch: the layers that reuse keys
# count positions with the padding.
_WRONG_IN_BATCHES = frozenset({"afm7"})

_FALLBACK_CONTEXT = 4096
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model whose weights are read; ``tokenizer`` waits for its own, and raises what was wrong with it."""

    model: nn.Module
    info: ModelInfo
    reading: Future[TokenizerWrapper]

    @property
    def tokenizer(self) -> TokenizerWrapper:
        return self.reading.result()


def load(
    path: Path,
    options: EngineOptions,
    progress: Progress,
    tokenizers: TokenizerReader | None = None,
    rank: "Rank | None" = None,
) -> Loaded:
    """Read the folder ``path`` on the calling thread, which owns every array from then on.

    ``tokenizers`` may have read its tokenizer before.

    On a CPU packed weights become dense float32 where ``options.dequantize`` says so, or get float32 scales; a GPU
    takes them as they are. A ``rank`` of a group reads its share only, and waits for the others.

    Raises ``LoadFailed`` where files are missing or want code of the model's own, the adapter does not belong to the
    model or a group's model can't be batched, and what MLX raises on bad files.
    """
    start = time.monotonic()
    _check_files(path)
    refuse_code(path)
    if on_the_cpu():
        make_cpu_fast()
    tokenizer = (tokenizers or TokenizerReader()).read(path)
    model, config = load_model(path, lazy=True, trust_remote_code=False)
    together = rank.split(model, dequantize=options.dequantize) if rank else model
    if rank and not batches(model):
        raise LoadFailed(
            f"mlx-lm can't batch a model of type {config.get('model_type')} yet, so a group of hosts can't serve it. "
            "Serve it by one host, without hosts."
        )
    if options.adapter:
        adapters.attach(model, Path(options.adapter))
    read_weights(model, path, progress, dequantize=options.dequantize)
    if options.adapter:
        adapters.merge(model)
    vocab_size = int(_setting(config, ("vocab_size",)) or len(tokenizer.result()))
    context = _context(config, options.context)
    info = describe_model(model, context=context, vocab_size=vocab_size, load_s=time.monotonic() - start)
    return Loaded(together, info, tokenizer)


def _check_files(path: Path) -> None:
    for what, pattern in (("config.json", "config.json"), ("weights", "model*.safetensors"), ("tokenizer", "*token*")):
        if not any(path.glob(pattern)):
            raise LoadFailed(
                f"{path} has no {what} ({pattern}). A model's folder needs config.json, model*.safetensors and the "
                "tokenizer's files; fetch or convert the model again."
            )


def batches(model: nn.Module) -> bool:
    """Whether mlx-lm can serve several requests to the model side by side, with the answers that each gets alone."""
    kind = getattr(model, "model_type", "")
    return kind not in _WRONG_IN_BATCHES and can_batch(make_prompt_cache(model))


def _context(config: dict[str, Any], wanted: int | None) -> int:
    most = int(_setting(config, _CONTEXT_KEYS) or _FALLBACK_CONTEXT)
    return most if wanted is None else min(wanted, most)


def _setting(config: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """The first of ``keys`` in the config, or in the text part of a multi-modal one."""
    for part in (config, config.get("text_config") or {}):
        for key in keys:
            if part.get(key):
                return part[key]
    return None
