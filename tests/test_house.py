"""The rules of the house: who may import whom, what the front process may load, what runs in the root."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PACKAGES = ("actors", "catalog", "cli", "cluster", "engine", "http", "journal", "memory")

# Each room and the rooms (or modules) of the house that it may use. What is not named is forbidden.
MAY_USE = {
    "errors": set(),
    "units": set(),
    "config": {"errors", "units"},
    "reload_plan": {"config"},
    "memory": {"memory", "errors"},
    "journal": {"journal", "memory", "units", "errors"},
    "engine": {"engine", "errors", "catalog", "memory"},
    "catalog": {
        "catalog",
        "config",
        "errors",
        "memory.needs",
        "engine.protocol",
        "engine.engine",
        "engine.fake_engine",
    },
    "actors": {
        *("actors", "memory", "journal", "catalog", "config", "errors"),
        *("engine.protocol", "engine.process", "engine.worker_group", "engine.environment"),
    },
    "http": {
        *("http", "actors", "memory", "journal", "catalog", "config", "errors"),
        *("units", "engine.protocol", "logs", "reload_plan"),
    },
    "cluster": {
        *("cluster", "actors", "memory", "journal", "catalog", "config", "errors", "units"),
        *("engine.protocol", "http.front", "http.stream", "logs"),
    },
    "cli": {
        *("cli", "cluster", "http.server", "http.access.keys", "actors.system", "memory", "journal"),
        *("catalog", "config", "errors", "logs", "engine.environment"),
    },
}
HEAVY = {"mlx", "mlx_lm", "transformers", "numpy"}
MAY_NOT_LOAD = {
    "actors": {"asyncio", "sanic", *HEAVY},
    "catalog": {"asyncio", "sanic", "pykka", *HEAVY},
    "cli": {"sanic", "pykka", *HEAVY},
    "cluster": HEAVY,
    "http": {"subprocess", "multiprocessing", *HEAVY},
    "journal": {"asyncio", "sanic", "pykka", *HEAVY},
    "memory": {"asyncio", "sanic", "pykka", "subprocess", *HEAVY},
    "engine": {"asyncio", "sanic", "pykka"},
}


def modules(room: str) -> list[Path]:
    single = ROOT / f"{room}.py"
    return [single] if single.exists() else sorted((ROOT / room).rglob("*.py"))


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("room", MAY_USE)
def test_imports_go_one_way(room: str) -> None:
    allowed = MAY_USE[room]
    for path in modules(room):
        for name in imports(path):
            if not name.startswith("plimsoll."):
                continue
            parts = name.removeprefix("plimsoll.").split(".")
            if parts == ["__version__"]:
                continue
            places = {".".join(parts[:depth]) for depth in range(1, len(parts) + 1)}
            assert places & allowed, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("room", MAY_NOT_LOAD)
def test_no_room_loads_what_belongs_to_another(room: str) -> None:
    for path in modules(room):
        loaded = {name.split(".")[0] for name in imports(path)}
        assert not loaded & MAY_NOT_LOAD[room], path.relative_to(ROOT)


def test_memory_does_no_io_outside_sources() -> None:
    for path in modules("memory"):
        if "sources" not in path.parts:
            assert not imports(path) & {"psutil", "os", "pathlib.Path", "ctypes", "socket", "time"}, path.name


def test_what_decides_for_many_machines_knows_nothing_of_how_they_talk() -> None:
    for name in ("affinity", "fleet", "losses", "node", "placement", "refusals", "replicas", "routing"):
        loaded = {one.split(".")[0] for one in imports(ROOT / "cluster" / f"{name}.py")}
        assert not loaded & {"ray", "asyncio", "sanic", "pykka", "psutil", "os", "socket", "time", "threading"}, name


def test_what_runs_in_the_root_still_finds_the_stdlibs_http() -> None:
    subprocess.run([sys.executable, "-c", "import http.client; http.client.HTTPConnection"], cwd=ROOT, check=True)
    assert not list((ROOT / "http").rglob("__init__.py"))


def test_every_package_folder_is_in_the_wheel() -> None:
    listed = _setuptools()["packages"]
    for package in PACKAGES:
        for folder in {path.parent for path in (ROOT / package).rglob("*.py")}:
            assert f"plimsoll.{'.'.join(folder.relative_to(ROOT).parts)}" in listed


def test_every_file_of_the_page_is_in_the_wheel() -> None:
    patterns = _setuptools()["package-data"]["plimsoll"]
    listed = {path for pattern in patterns for path in ROOT.glob(pattern)}
    static = {path for path in (ROOT / "http" / "static").rglob("*") if path.is_file()}
    assert len(static) > 20
    assert static <= listed


def _setuptools() -> dict[str, Any]:
    settings: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "setuptools"
    ]
    return settings


@pytest.mark.parametrize(("lock", "extras"), [("requirements.txt", ()), ("requirements-dev.txt", ("dev",))])
def test_every_dependency_is_locked_by_hash(lock: str, extras: tuple[str, ...]) -> None:
    """Where this fails after a change of pyproject.toml, ``make lock`` is what is missing."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*pyproject["build-system"]["requires"], *pyproject["project"]["dependencies"]]
    for extra in extras:
        wanted += pyproject["project"]["optional-dependencies"][extra]
    text = (ROOT / lock).read_text(encoding="utf-8")
    # One package may stand there in a version for each of two Pythons.
    locked = re.findall(r"^([a-z0-9.-]+)==([^ ]+) .*\\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)
    for requirement in map(Requirement, wanted):
        versions = [version for name, version in locked if name == canonicalize_name(requirement.name)]
        assert versions, f"{requirement.name} is not in {lock}"
        assert all(version in requirement.specifier for version in versions), f"{requirement} and {versions} in {lock}"
    assert len(re.findall(r"^[a-z0-9]", text, re.MULTILINE)) == len(locked)


@pytest.mark.parametrize("room", ["actors", "cluster", "memory"])
def test_nothing_that_decides_asks_for_the_wall_clock_which_may_jump(room: str) -> None:
    for path in modules(room):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            assert name not in {"time.time", "time.time_ns", "datetime.now"}, f"{path.relative_to(ROOT)} uses {name}"
