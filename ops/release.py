"""Build a release, check it, and list what would be uploaded. Nothing is published from here.

    python ops/release.py [--tag] [--try pip,pipx,uv] [--url https://HOST/FOLDER]

``--tag`` demands that HEAD carries the tag ``vVERSION`` and that nothing is changed. ``--try`` installs the wheel and
the source archive by each tool from an index on this machine, in folders that are removed afterwards, and runs the
command; dependencies come from the package index that pip and uv are set to. ``--url`` is the folder from which the
source archive will be downloaded, for the Homebrew formula; without it the formula is for this machine alone.
"""

import argparse
import contextlib
import functools
import hashlib
import http.server
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = "mlx-plimsoll"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tag", action="store_true", help="HEAD must carry the version's tag, with nothing changed")
    parser.add_argument("--try", dest="tools", default="", metavar="TOOL,TOOL", help="pip, pipx, uv")
    parser.add_argument("--url", help="the folder that will hold the source archive")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    given = parser.parse_args()
    version = the_version()
    if given.tag:
        check_tag(version)
    files = build(given.out)
    problems = [*check_version(files, version), *check_contents(files)]
    for tool in filter(None, given.tools.split(",")):
        for file in files:
            print(f"{tool} install of {file.name} ...", flush=True)
            problems += try_install(tool, file, version)
    files.append(write_formula(files, version, given.url))
    for file in files:
        print(f"{file.stat().st_size:>10,}  sha256:{sha256(file)}  {file}")
    for problem in problems:
        print(f"PROBLEM: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


def the_version() -> str:
    """The package's own, read and not imported."""
    found = re.search(r'^__version__ = "([^"]+)"', (ROOT / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        sys.exit("__init__.py has no __version__")
    return found[1]


def check_tag(version: str) -> None:
    """Leave where HEAD is not exactly what the tag names."""
    tags = _run("git", "tag", "--points-at", "HEAD").split()
    if f"v{version}" not in tags:
        sys.exit(f"HEAD has no tag v{version} (it has {tags or 'none'}): git tag v{version}, or mend __version__")
    if changed := _run("git", "status", "--porcelain"):
        sys.exit(f"there are changes that are not committed:\n{changed}")


def build(out: Path) -> list[Path]:
    """The source archive and the wheel made of it, out of a copy of what git knows: no stray file gets in."""
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in _run("git", "ls-files", "-z").split("\0"):
            if name and (ROOT / name).is_file():
                target = Path(folder, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target)
        _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), folder)
    return sorted(out.iterdir())


def check_version(files: list[Path], version: str) -> Iterator[str]:
    """Each file is of this version, and the changelog has something to say of it."""
    for file in files:
        if f"-{version}" not in file.name:
            yield f"{file.name} is not of version {version}"
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## (Unreleased|\[?{re.escape(version)}\b)", changes, re.MULTILINE):
        yield f"CHANGELOG.md has no section for {version}"


def check_contents(files: list[Path]) -> Iterator[str]:
    """Every module and data file of the packages is in both, and nothing else is in the wheel."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    wanted = set()
    for package in settings["packages"]:
        folder = ROOT.joinpath(*package.split(".")[1:])
        wanted |= {file.relative_to(ROOT).as_posix() for file in folder.glob("*.py")}
    for pattern in settings["package-data"]["plimsoll"]:
        wanted |= {file.relative_to(ROOT).as_posix() for file in ROOT.glob(pattern) if file.is_file()}
    tracked = set(_run("git", "ls-files").splitlines())
    wanted &= tracked
    for file in files:
        held = contents(file)
        if missing := sorted(wanted - held):
            yield f"{file.name} lacks {', '.join(missing[:5])} ({len(missing)} files)"
        if file.suffix == ".whl" and (strange := sorted(held - wanted)):
            yield f"{file.name} has {', '.join(strange[:5])}, which is no part of a package ({len(strange)} files)"


def contents(file: Path) -> set[str]:
    """The files of the package in an archive, by their paths in this repository."""
    if file.suffix == ".whl":
        names = zipfile.ZipFile(file).namelist()
        return {name.removeprefix("plimsoll/") for name in names if name.startswith("plimsoll/")}
    with tarfile.open(file) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def write_formula(files: list[Path], version: str, url: str | None) -> Path:
    """The Homebrew formula of the source archive, beside it."""
    archive = next(file for file in files if file.name.endswith(".tar.gz"))
    folder = url.rstrip("/") if url else archive.parent.resolve().as_uri()
    text = (ROOT / "ops" / "homebrew" / "plimsoll.rb.in").read_text(encoding="utf-8")
    values = {"HOMEPAGE": folder, "URL": f"{folder}/{archive.name}", "VERSION": version, "SHA256": sha256(archive)}
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    formula = archive.with_name("plimsoll.rb")
    formula.write_text(text, encoding="utf-8")
    return formula


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def try_install(tool: str, file: Path, version: str) -> Iterator[str]:
    """Install ``file`` by ``tool`` for a user who has nothing yet; what is wrong with the command then."""
    with tempfile.TemporaryDirectory() as text, index_of(file) as url:
        home, user = Path(text), Path.home()
        environment = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_", "SSL_"))}
        environment |= {"PATH": os.environ["PATH"], "HOME": text}
        environment.setdefault("UV_CACHE_DIR", str(user / ".cache" / "uv"))
        environment.setdefault("PIP_CACHE_DIR", str(user / ".cache" / "pip"))
        wanted = f"{NAME}=={version}"
        run = functools.partial(_run, env=environment)
        began = time.monotonic()
        try:
            match tool:
                case "pip":
                    run(sys.executable, "-m", "venv", str(home / "venv"))
                    run(str(home / "venv/bin/python"), "-m", "pip", "install", "-q", "--extra-index-url", url, wanted)
                case "pipx":
                    index = f"--extra-index-url {url}"
                    run("pipx", "install", "--python", sys.executable, "--pip-args", index, wanted)
                case _:
                    run("uv", "tool", "install", "-q", "--python", sys.executable, "--index", url, wanted)
            command = str(home / ("venv/bin/plimsoll" if tool == "pip" else ".local/bin/plimsoll"))
            print(f"  installed in {time.monotonic() - began:.0f} s")
            if run(command, "version").strip() != version:
                yield f"{tool}: {file.name} gives another version"
            for arguments in ((), ("check",), ("models",), ("--help",)):
                run(command, *arguments)
        except subprocess.CalledProcessError as error:
            told = (error.stderr or error.stdout)[-800:]
            yield f"{tool}: {file.name}: {' '.join(map(str, error.cmd[:4]))} failed: {told}"


@contextlib.contextmanager
def index_of(file: Path) -> Iterator[str]:
    """The URL of a package index on this machine that has this one file."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "simple", NAME)
        place.mkdir(parents=True)
        shutil.copy(file, place)
        (place / "index.html").write_text(
            f'<a href="{file.name}#sha256={sha256(file)}">{file.name}</a>', encoding="utf-8"
        )

        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                """Say nothing."""

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/simple/"
        finally:
            server.shutdown()
            server.server_close()


def _run(*command: str, env: dict[str, str] | None = None) -> str:
    folder = ROOT if env is None else None
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
