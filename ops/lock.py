"""Write requirements.txt (to run) and requirements-dev.txt (to work on it) anew: ``make lock``.

Each is for all platforms and Pythons that Plimsoll runs on: every version with the SHA-256 of each of its files, so
that ``pip install --require-hashes`` takes nothing else. uv resolves it, in an environment that is thrown away, from
the index that pip is configured with. Versions stay as they are where they still fit: ``make lock ARGS=--upgrade``
takes the newest.
"""

import os
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCKS = {"requirements-dev.txt": ["--extra", "dev"], "requirements.txt": ["--constraint", "requirements-dev.txt"]}
HEADER = "# Made by `make lock` out of pyproject.toml. Every file that pip may install, by its SHA-256.\n"


def main(arguments: list[str]) -> None:
    """``arguments`` go to uv, such as ``--upgrade`` or ``--upgrade-package NAME``."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    # The editable install builds with what is installed, so the build's needs are locked too.
    build = "\n".join(pyproject["build-system"]["requires"])
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "uv"], check=True)
        index = os.environ.get("PIP_INDEX_URL") or _configured(python)
        compile_command = [
            *(python, "-m", "uv", "pip", "compile", "pyproject.toml", "-", "--universal", "--generate-hashes"),
            *("--no-header", "--no-annotate", "--quiet", "--python-version", "3.11"),
            *(["--default-index", index] if index else []),
        ]
        for name, options in LOCKS.items():
            command = [*compile_command, *options, *arguments, "--output-file", name]
            subprocess.run(command, cwd=ROOT, input=build, text=True, check=True, stdout=subprocess.DEVNULL)
            lock = ROOT / name
            lock.write_text(HEADER + lock.read_text(encoding="utf-8"), encoding="utf-8")
            print(f"{name}: {lock.read_text(encoding='utf-8').count('==')} packages")


def _configured(python: Path) -> str:
    asked = subprocess.run([python, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, check=False)
    return asked.stdout.decode().strip()


if __name__ == "__main__":
    main(sys.argv[1:])
