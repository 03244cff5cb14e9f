"""The rules of the house: who may import whom, what the front process may load, how modules are named."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PACKAGES = ("actors", "catalog", "cli", "cluster", "engine", "http", "journal", "memory")

# From the lowest to the highest. A room may use rooms below its own layer only; docs/design.md shows the same.
LAYERS = (
    ("errors", "units", "logs", "validation"),
    ("memory", "config"),
    ("config_file",),
    ("journal", "catalog"),
    ("engine",),
    ("actors",),
    ("inbox",),
    ("http", "cluster"),
    ("cli",),
)
# Each room and the rooms (or modules) of the house that it may use. What is not named is forbidden.
MAY_USE = {
    "errors": set(),
    "units": set(),
    "config": {"errors", "units", "validation"},
    "config_file": {"config", "errors"},
    "validation": set(),
    "logs": set(),
    "memory": {"memory", "errors"},
    "journal": {"journal", "memory", "units", "errors"},
    "catalog": {"catalog", "config", "config_file", "errors", "memory.load_options"},
    "engine": {"engine", "errors", "catalog", "memory"},
    "actors": {
        *("actors", "memory", "journal", "catalog", "config", "errors"),
        *("engine.protocol", "engine.handle"),
    },
    "inbox": {"actors.messages", "actors.replies", "actors.mailbox", "errors"},
    "http": {
        *("http", "inbox", "actors", "memory", "journal", "catalog", "config", "config_file", "errors"),
        *("units", "validation", "engine.protocol", "logs"),
    },
    "cluster": {
        *("cluster", "inbox", "actors", "memory", "journal", "catalog", "config", "errors", "units"),
        *("engine.protocol", "logs"),
    },
    "cli": {
        *(
            "cli",
            "cluster",
            "http.server",
            "http.access.permissions",
            "http.bodies",
            "actors.system",
            "actors.load_needs",
            "memory",
            "journal",
        ),
        *("catalog", "config", "config_file", "errors", "logs", "engine.handle"),
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


def product() -> list[Path]:
    return sorted([*ROOT.glob("*.py"), *(path for room in PACKAGES for path in modules(room))])


@functools.cache
def imports(path: Path) -> frozenset[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


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
        if "gguf" in path.parts:
            continue  # runs in a child process of its own
        loaded = {name.split(".")[0] for name in imports(path)}
        assert not loaded & MAY_NOT_LOAD[room], path.relative_to(ROOT)


def test_one_module_uses_private_names_of_mlx_lm() -> None:
    place = ROOT / "engine" / "mlx_lm_internals.py"
    # Names that only mlx-lm has; "_step" or "_tokenizer" may be anybody's own.
    words = re.findall(r'"(_[a-z]+_[a-z_]+)"', place.read_text(encoding="utf-8"))
    assert {"_generation_batch", "_merge_caches", "_next_tokens"} <= set(words)
    for path in modules("engine"):
        if path == place:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            assert name not in words, f"{path.relative_to(ROOT)} uses {name}: get it from {place.name}"
            if isinstance(node, ast.Attribute) and name.startswith("_") and not name.startswith("__"):
                owner = ast.unparse(node.value)
                assert owner in {"self", "cls", "super()", "os"}, f"{path.relative_to(ROOT)}: {owner}.{name}"


def test_one_way_leads_from_http_to_a_model() -> None:
    """Every API's requests are answered by ``http/endpoint.py``, which alone makes an ``Answer``, which alone asks."""
    places = {"Answer": "http/endpoint.py", "Chat": "http/answer.py"}
    found = {name: set() for name in places}
    for path in modules("http"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in places:
                found[ast.unparse(node.func).rpartition(".")[2]].add(path.relative_to(ROOT).as_posix())
    assert found == {name: {place} for name, place in places.items()}


def test_memory_does_no_io_outside_sources() -> None:
    for path in modules("memory"):
        if "sources" not in path.parts:
            assert not imports(path) & {"psutil", "os", "pathlib.Path", "ctypes", "socket", "time"}, path.name


def test_what_decides_for_many_machines_knows_nothing_of_how_they_talk() -> None:
    for name in ("fleet", "node", "placement", "replicas", "routing"):
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


def test_only_these_touch_a_disk_in_rooms_where_nobody_may_wait_for_it() -> None:
    """A dead disk holds whoever looks at it: these read at the start, on a thread of ``DISK``, or no disk at all."""
    reads = {
        "http/access/permissions.py",
        "http/operations/page.py",
        "http/response_folder.py",  # on threads of ``DISK``
        "http/process/liveness.py",  # a cluster head reads this machine, on a thread
        "http/process/signals.py",
        # The default executor is not for disks either: its few threads are also what a stop needs.
        "http/app.py",
    }
    calls = {"stat", "lstat", "exists", "is_dir", "is_file", "iterdir", "glob", "rglob", "scandir", "listdir", "open"}
    calls |= {"read_text", "read_bytes", "write_text", "write_bytes", "realpath", "getsize", "to_thread"}
    found = set()
    for path in (*modules("actors"), *modules("http")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in calls:
                found.add(path.relative_to(ROOT).as_posix())
    assert found == reads


def test_no_arrow_goes_up() -> None:
    floor = {room: number for number, layer in enumerate(LAYERS) for room in layer}
    for room, allowed in MAY_USE.items():
        for used in {name.split(".")[0] for name in allowed} - {room}:
            assert floor[used] < floor[room], f"{room} is not above {used}"


# Arrows between folders that close a circle, each with the reason why it stays.
CIRCLES = {
    ("engine/protocol.py", "engine/group"): "the operations of a group travel in the worker protocol",
    ("engine/chat", "engine/group"): "the leader of a group puts its generator into the chat engine",
    ("engine/load", "engine/group"): "a type alone: a rank loads its share",
    ("http/limits", "http/app_state.py"): "types alone: the application and its requests",
    ("http/limits", "http/access"): "which addresses are this machine",
    ("http/openai/responses", "http/openai"): "the part of an API uses what the whole has in common",
    ("cli/link.py", "cli/overview.py"): "the command without a name is the overview, imported when it runs",
    ("engine/dialect", "engine/dialect/calls"): "a family's dialect uses the readers, and they its values",
}


@functools.cache
def arrows() -> dict[tuple[str, str], str]:
    """Which folder imports from which, with one file that does; modules beside the folders of a room count alone."""
    places = {}
    for path in product():
        relative = path.relative_to(ROOT)
        name = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        places[name] = relative.parent.as_posix() if len(relative.parts) > 2 else relative.as_posix()
    found = {}
    for path in product():
        relative = path.relative_to(ROOT)
        here = relative.parent.as_posix() if len(relative.parts) > 2 else relative.as_posix()
        for imported in imports(path):
            name = imported.removeprefix("plimsoll.")
            while name and name not in places:
                name = name.rpartition(".")[0]
            if name and imported.startswith("plimsoll.") and places[name] != here:
                found[here, places[name]] = relative.as_posix()
    return found


def circles(graph: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The arrows of ``graph`` that have a way back."""
    ways = defaultdict(set)
    for start, end in graph:
        ways[start].add(end)

    def reached(start: str) -> set[str]:
        seen, left = set(), [start]
        while left:
            for end in ways[left.pop()] - seen:
                seen.add(end)
                left.append(end)
        return seen

    ways_from = {start: reached(start) for start in list(ways)}
    return {(start, end) for start, end in graph if start in ways_from.get(end, ())}


def test_no_circle_goes_through_folders() -> None:
    found = arrows()
    closed = circles(set(found) - set(CIRCLES))
    assert not closed, {arrow: found[arrow] for arrow in sorted(closed)}


MOST_LINES = 300
# Modules that are longer, each with the reason why it reads better as one. None is longer than 520 lines.
LONG = {
    "actors/messages.py": "all messages in one place, with the table of who tells whom",
    "actors/model.py": "the ModelActor's states: one handler for each message, in one table",
    "actors/supervisor.py": "the Supervisor's handlers, in one table",
    "config.py": "the schema of config.yaml, one struct for each section",
    "engine/chat/engine.py": "the order of one step over a batch; its parts stand beside it",
    "engine/chat/prefix_store/prefix_store.py": "one owner of blocks and snapshots; its parts stand beside it",
    "engine/protocol.py": "all frames between front process and worker in one place",
    "engine/worker.py": "the worker's two threads and what passes between them",
    "journal/events.py": "all events in one place, one struct for each kind",
}


def test_modules_are_short() -> None:
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in product()}
    assert {name for name, length in lengths.items() if length > MOST_LINES} <= set(LONG)
    assert max(lengths.values()) <= 520


def test_every_module_says_what_it_is() -> None:
    for path in (*product(), *(ROOT / "ops").rglob("*.py")):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path.relative_to(ROOT)


# File names that stand more than once, each with the reason.
ONCE_PER_API = {"routes.py", "request.py", "answers.py"}
APIS = {"http/openai", "http/openai/responses", "http/anthropic", "http/ollama"}
SAME_NAME = {
    "admin.py": "the commands of administration, and its endpoints",
    "app.py": "the application of the command line, and that of the HTTP server",
    "config.py": "config.yaml; and a GGUF file's header as the config of its model",
    "engine.py": "what an engine is; and the engines of language models and of embedding models",
    "bodies.py": "what clients send for one request; made for prompts by the command line",
    "errors.py": "all errors; and each form in which HTTP tells them",
    "events.py": "the journal's events; and their live feed over HTTP",
    "files.py": "what is read of files: of a model's, of a model's for Ollama's clients, of /proc",
    "messages.py": "the messages of actors, and those of a chat",
    "models.py": "the commands about models, and Ollama's endpoints about them",
    "pull.py": "fetching a model's files, and Ollama's endpoint for that",
    "system.py": "what starts first: the actors of one machine, those of a cluster; and the sampler of this system",
}


def repeated_names() -> dict[str, list[str]]:
    places = defaultdict(list)
    for path in product():
        relative = path.relative_to(ROOT)
        is_one_of_many = relative.name in ONCE_PER_API and relative.parent.as_posix() in APIS
        # The tables of /openapi.json have the names of what they describe.
        if relative.name != "__init__.py" and not is_one_of_many and relative.parts[:2] != ("http", "openapi"):
            places[relative.name].append(relative.as_posix())
    return {name: found for name, found in places.items() if len(found) > 1}


def test_no_two_modules_have_one_name() -> None:
    found = repeated_names()
    assert found.keys() <= SAME_NAME.keys(), {name: found[name] for name in found.keys() - SAME_NAME.keys()}


def test_no_exception_is_left_over() -> None:
    """An exception that nothing needs any more has to leave its list."""
    found = arrows()
    needed = {arrow for arrow in set(CIRCLES) & set(found) if arrow in circles(set(found) - set(CIRCLES) | {arrow})}
    assert set(CIRCLES) - needed == set()
    assert {name for name in LONG if len((ROOT / name).read_text().splitlines()) <= MOST_LINES} == set()


# Words in names of modules that mean here what they mean to every programmer. All others are in docs/glossary.md.
PLAIN_WORDS = {
    *("and", "answer", "bounds", "cgroup", "cpu", "darwin", "detection", "device", "environment"),
    *("errors", "fake", "files", "generator", "host", "idle", "internals", "line"),
    *("loading", "log", "math", "measure", "memory", "model", "open", "ops", "preparation", "processes"),
    *("records", "refusal", "replies", "report", "request", "requests", "running", "settings"),
    *("status", "supervision", "system", "text", "timers", "view", "waiting", "weights"),
    # Of formats and of data.
    *("bare", "described", "folder", "gemma", "history", "json", "mending", "named", "nested", "parts", "plain"),
    *("learned", "plan", "pythonic", "reader", "spec", "switches", "tagged", "tree", "values", "writing", "xtml"),
    *("a", "at", "create", "is", "lost", "one", "time", "what"),
    # Of HTTP, its APIs and operations.
    *("admin", "anthropic", "bodies", "completions", "document", "events", "health", "input", "metrics", "models"),
    *("ollama", "openai", "os", "params", "permissions", "pull", "reads", "reload", "responses", "routes", "schema"),
    "search",
    *("server", "signals", "timeouts"),
}


def words_of_names() -> dict[str, str]:
    """Each word in the name of a module of the rooms that have a language of their own, with one module."""
    rooms = ("actors", "http", "memory", "engine")
    paths = [path for room in rooms for path in modules(room) if path.name != "__init__.py"]
    return {word: path.relative_to(ROOT).as_posix() for path in paths for word in path.stem.split("_")}


def glossary() -> Iterator[str]:
    """The words of the glossary's terms."""
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    for terms in re.findall(r"^\| ([^|]+?) \| [^|]+ \|$", text, re.MULTILINE):
        yield from re.split(r"[ ,-]+", terms.lower())
        yield from re.split(r"[ ,]+", terms.lower().replace("-", ""))


def test_names_of_modules_speak_the_language_of_the_glossary() -> None:
    known = set(glossary())
    for word, module in words_of_names().items():
        explained = word in PLAIN_WORDS or {word, word.removesuffix("s")} & known
        assert explained, f"{word!r} of {module} is not in docs/glossary.md"


def test_the_glossary_has_what_the_design_marks_as_its_words() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    marked = set(re.findall(r"(?<![*])[*]([a-z][A-Za-z -]+)[*](?![*])", text)) - {"italics"}
    known = set(
        re.findall(r"(?:^\| |, )([^|,]+?)(?= \| |, )", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    )
    assert len(marked) > 15
    assert {word for word in marked if not {word, word.removesuffix("s")} & known} == set()


PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_point_to_what_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    paths = [
        path.relative_to(ROOT).as_posix() for path in (*product(), *ROOT.glob("ops/**/*"), *ROOT.glob("tests/**/*"))
    ]
    for name in re.findall(r"`(?:python3? )?([a-z_]+(?:/[a-z_]+)*\.(?:py|json|yaml))\b", text):
        there = (ROOT / name).exists() or any(path.endswith(f"/{name}") for path in paths)
        assert there or name in OF_USERS, f"{page.name} names {name}"
    for folder in re.findall(r"`([a-z_]+(?:/[a-z_]+)*)/`", text):
        assert (ROOT / folder).is_dir() or folder in OF_USERS, f"{page.name} names {folder}/"
    for target, anchor in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", text):
        linked = (page.parent / target) if target else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


# Names in the docs that are no files of this repository: of models, and of what is made.
OF_USERS = {
    *("config.json", "modules.json", "tokenizer.json", "tokenizer_config.json", "adapter_config.json"),
    *("generation_config.json", "conversion.json", "build", "dist"),
}
