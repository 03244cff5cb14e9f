"""Reads a model's tokenizer on a thread of its own: half of a small model's load, and no array is in it."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_config, load_tokenizer

from plimsoll.errors import LoadFailed

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
            self._files, self._reading = files, thread.submit(_read, folder)
            thread.shutdown(wait=False)
        return self._reading


def _files(folder: Path) -> _Files:
    found = [(str(file), file.stat()) for pattern in ("*token*", "*config.json") for file in folder.glob(pattern)]
    return sorted((name, stat.st_mtime_ns, stat.st_size) for name, stat in found)


def _read(folder: Path) -> TokenizerWrapper:
    config: dict[str, Any] = load_config(folder)
    # Said outright: where it is left open, transformers asks on the terminal.
    try:
        tokenizer = load_tokenizer(folder, {"trust_remote_code": False}, eos_token_ids=config.get("eos_token_id"))
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise LoadFailed(
            f"The tokenizer in {folder} wants code of its own to be run, which is never done here: use a model whose "
            "tokenizer_config.json names a class of transformers."
        ) from None
    # Were one set, every encode would change the shared Rust object for a moment, and a decode on the step thread in
    # that moment raises "Already borrowed".
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        backend.no_truncation()
        backend.no_padding()
    return tokenizer
