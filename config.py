"""YAML to frozen structs: the defaults of ``config.yaml`` with the user's file merged over them.

Every error is a ``ConfigError`` that names the key's path, the value and what is allowed.
"""

import itertools
import os
import re
import reprlib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
import yaml

from plimsoll.errors import ConfigError
from plimsoll.units import Bytes, Seconds, Secret, from_yaml, to_plain

_LEAST_BYTES = 64 * 1024 * 1024
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 200

Percent = Annotated[float, msgspec.Meta(gt=0, le=100)]
ModelName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$", max_length=200)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A mapping in the file; unknown keys are refused."""


class ServerConfig(Section, frozen=True):
    host: str
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    max_body: Bytes
    keepalive: Seconds
    shutdown_grace: Seconds


class ApiKey(Section, frozen=True):
    """One key and what it may do: exactly one of ``key``, ``env`` (a variable's name) and ``file`` holds it."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
    role: Literal["read", "user", "admin"]
    key: Secret | None = None
    env: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    file: Annotated[str, msgspec.Meta(min_length=1)] | None = None


class AccessConfig(Section, frozen=True):
    keys: list[ApiKey]
    hosts: list[Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]+$", max_length=253)]]
    origins: list[Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9+.-]*://[^/\s]+$", max_length=300)]]


class MemoryConfig(Section, frozen=True):
    limit: Bytes | None
    warning_percent: Percent
    critical_percent: Percent
    emergency_percent: Percent
    hysteresis_percent: Annotated[float, msgspec.Meta(ge=0, le=50)]
    clear_after: Seconds
    critical_grace: Seconds


HostName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:@%-]*$", max_length=253)]


class HostConfig(Section, frozen=True):
    """A host of a group: its name for the remote shell, its address for the other hosts, its devices for jaccl."""

    host: HostName
    address: HostName | None = None
    rdma: list[str | None] = []


class ModelEntry(Section, frozen=True):
    """One model that may be served. ``idle_ttl`` unset means ``models.idle_ttl``; ``adapter`` is a LoRA's folder.

    With ``hosts`` a worker group serves it, one process on each.
    """

    source: Annotated[str, msgspec.Meta(min_length=1)]
    enabled: bool = True
    pin: bool = False
    idle_ttl: Seconds | msgspec.UnsetType | None = msgspec.UNSET
    context: Annotated[int, msgspec.Meta(ge=16)] | None = None
    adapter: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    embeddings: bool = False
    hosts: list[HostName | HostConfig] = []
    backend: Literal["ring", "jaccl", "mpi"] = "ring"
    split: Literal["tensor", "pipeline"] = "tensor"


class ModelsConfig(Section, frozen=True):
    builtin: bool
    dir: str | None
    cache_dir: str | None
    offline: bool
    idle_ttl: Seconds | None
    queue: Annotated[int, msgspec.Meta(ge=1, le=100_000)]
    remote_shell: Annotated[str, msgspec.Meta(min_length=1)]
    remote_python: Annotated[str, msgspec.Meta(min_length=1)] | None
    group_port: Annotated[int, msgspec.Meta(ge=1024, le=65000)]
    entries: dict[ModelName, ModelEntry]


class LimitsConfig(Section, frozen=True):
    """What one request, connection or key may; the structs of the APIs have the bounds that are never changed."""

    messages: Annotated[int, msgspec.Meta(ge=1)]
    prompt: Bytes
    tools: Annotated[int, msgspec.Meta(ge=1)]
    # Of connections and keys:
    connections: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    header_size: Bytes
    headers: Annotated[int, msgspec.Meta(ge=10, le=1000)]
    header_time: Seconds
    body_time: Seconds
    idle: Seconds
    slow_client: Seconds
    requests_per_minute: Annotated[float, msgspec.Meta(gt=0)] | None
    burst: Annotated[int, msgspec.Meta(ge=1, le=100_000)]


class EngineConfig(Section, frozen=True):
    max_batch: Annotated[int, msgspec.Meta(ge=1, le=256)]
    prefill_chunk: Annotated[int, msgspec.Meta(ge=1, le=65536)] | None
    prompt_cache: Bytes
    disk_cache: Bytes
    kv_budget: Bytes | None
    dequantize: Literal["auto", "always", "never"]
    blas: str
    stop_grace: Seconds | None
    spare_worker: bool
    hang_after: Seconds | None


class ClusterConfig(Section, frozen=True):
    """For ``serve --cluster``. A queue for ``grow_after`` earns a replica, room for ``shrink_after`` costs one."""

    address: Annotated[str, msgspec.Meta(min_length=1)]
    grow_after: Seconds
    shrink_after: Seconds


class LoggingConfig(Section, frozen=True):
    level: Literal["debug", "info", "warning", "error"]
    language: Literal["en", "ru"]
    file: str | None
    blackbox: str | None


class Config(Section, frozen=True):
    """The whole effective configuration."""

    server: ServerConfig
    access: AccessConfig
    memory: MemoryConfig
    models: ModelsConfig
    limits: LimitsConfig
    engine: EngineConfig
    cluster: ClusterConfig
    logging: LoggingConfig


def load(explicit: str | os.PathLike[str] | None = None) -> Config:
    """The effective configuration: defaults, and over them the first user's file that is found.

    Raises:
        ConfigError: a file that can't be read, or a key with a bad path, type or value.

    """
    path = find_user_file(explicit)
    return parse(_read(path), origin=str(path)) if path else parse({})


def parse(user: dict[str, Any], origin: str = "config") -> Config:
    """``user``'s keys merged over the defaults and validated; ``origin`` names the file in errors."""
    merged = _merge(defaults(), user)
    try:
        config = msgspec.convert(merged, Config, dec_hook=from_yaml)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{origin}: {_explain(error, merged)}") from None
    _check_sense(config, origin)
    return config


def defaults() -> dict[str, Any]:
    """The shipped ``config.yaml`` as plain data."""
    text = resources.files("plimsoll").joinpath("config.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def find_user_file(explicit: str | os.PathLike[str] | None = None) -> Path | None:
    """``--config``, ``$PLIMSOLL_CONFIG``, ``~/.config/plimsoll/config.yaml``, ``./plimsoll.yaml``: first one."""
    for named in (explicit, os.environ.get("PLIMSOLL_CONFIG")):
        if named:
            return Path(named).expanduser()
    base = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    candidates = (base / "plimsoll" / "config.yaml", Path("plimsoll.yaml"))
    return next((path for path in candidates if path.is_file()), None)


def to_yaml(config: Config) -> str:
    """``config`` as YAML that ``load`` accepts, but for secrets, which are not shown."""
    plain = msgspec.to_builtins(config, enc_hook=to_plain)
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice, where YAML would silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # PyYAML's own error says it better
            if key_node.value in seen:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: the key {key_node.value!r} is written twice")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - _Loader is a SafeLoader
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {_yaml_problem(error)}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply") from None
    except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError) as error:
        # What PyYAML lets through for values that are none of their kind, such as the date 2026-13-99.
        raise ConfigError(f"{path}: has a value that YAML can't read: {error}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a mapping of sections, not {type(data).__name__}")
    return data


def _yaml_problem(error: yaml.YAMLError) -> str:
    """What is wrong and where, without the line itself, which may hold a key."""
    if not isinstance(error, yaml.MarkedYAMLError) or (mark := error.problem_mark) is None:
        return "it holds a character that YAML does not allow"
    # These two quote a value's beginning: an alias (*...) or a tag (!...).
    told = not isinstance(error, yaml.composer.ComposerError | yaml.constructor.ConstructorError)
    what = error.problem if told else "an alias or a tag that is not known; put the value between quotes"
    return f"line {mark.line + 1}, column {mark.column + 1}: {what}"


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        mine = merged.get(key)
        merged[key] = _merge(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
    return merged


def _explain(error: msgspec.ValidationError, data: Any) -> str:
    """Msgspec's message turned round: key path, value, what is allowed."""
    text, _, where = str(error).partition(" - at ")
    _, is_key, where = where.rpartition("`key` in ")
    path = where.strip("`").removeprefix("$").lstrip(".")
    if is_key:
        names = _at(path.split("."), data) if path else data
        bad = next(name for name in names if not (_is_name(name) if path else isinstance(name, str)))
        expected = text.removeprefix("Expected ").replace("`", "")
        return f"{path or 'the file'}: {_shown(bad)} is not allowed as a name, expected {expected}"
    if unknown := re.search(r"unknown field `(.+)`", text, re.DOTALL):
        return f"{_join(path, unknown[1][:100])}: unknown key; see config.yaml for the keys there are"
    if missing := re.search(r"missing required field `(.+)`", text):
        return f"{_join(path, missing[1])}: this key is required"
    if path == "access" or path.startswith("access.keys"):
        # Never the value: somebody may have written a key where it does not belong.
        allowed = "read, user or admin" if path.endswith(".role") else text.removeprefix("Expected ").replace("`", "")
        return f"{path}: what stands there is not allowed, expected {allowed}"
    if "[...]" in path:
        path, value = _offender(path, data)
    else:
        value = _at(path.split("."), data) if path else data
    allowed = _choices(path) or text.removeprefix("Expected ").replace("`", "")
    return f"{path or 'the file'}: {_shown(value)} is not allowed, expected {allowed}"


def _choices(path: str) -> str:
    """The words that the key at ``path`` may have; nothing where it is no choice of words."""
    kind: Any = Config
    keys = path.split(".")
    if keys[:2] == ["models", "entries"]:  # whose names may have dots of their own
        kind, keys = ModelEntry, keys[-1:]
    for key in keys:
        fields = {field.name: field.type for field in msgspec.structs.fields(kind)} if isinstance(kind, type) else {}
        kind = fields.get(key)
    return " or ".join(get_args(kind)) if get_origin(kind) is Literal else ""


def _shown(value: Any) -> str:
    """``repr``, but short: YAML's references make a small file a value of any size."""
    try:
        return _SHORT.repr(value)
    except ValueError:
        return "a number of thousands of digits"


def _is_name(value: Any) -> bool:
    try:
        msgspec.convert(value, ModelName)
    except msgspec.ValidationError:
        return False
    return True


def _join(path: str, key: str) -> str:
    return f"{path}.{key}".lstrip(".").replace("[...]", "*")


def _at(keys: list[str], data: Any) -> Any:
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _offender(path: str, data: Any) -> tuple[str, Any]:
    """Find the model entry that fails by itself, for msgspec hides a dict's key as ``[...]``."""
    before, _, after = path.partition("[...]")
    container = _at(before.strip(".").split("."), data)
    for name, entry in (container or {}).items():
        try:
            msgspec.convert({name: entry}, dict[ModelName, ModelEntry], dec_hook=from_yaml)
        except msgspec.ValidationError:
            inner = after.strip(".")
            value = _at(inner.split("."), entry) if inner else (entry if isinstance(name, str) else name)
            return _join(f"{before.strip('.')}.{name}", inner).rstrip("."), value
    return path, container


def _check_sense(config: Config, origin: str) -> None:
    """What types can't say: values that contradict each other."""
    _check_keys(config.access.keys, origin)
    _check_limits(config.limits, origin)
    for name, entry in config.models.entries.items():
        if entry.hosts:
            _check_group(entry, f"{origin}: models.entries.{name}")
    memory = config.memory
    steps = [
        (f"memory.{name}_percent", getattr(memory, f"{name}_percent")) for name in ("warning", "critical", "emergency")
    ]
    for (low_key, low), (high_key, high) in itertools.pairwise(steps):
        if low >= high:
            raise ConfigError(f"{origin}: {low_key}: {low:g} is not allowed, it must be below {high_key} ({high:g})")
    if config.server.keepalive <= 0:
        raise ConfigError(
            f"{origin}: server.keepalive: {config.server.keepalive:g} is not allowed, expected more than 0 s"
        )
    if config.engine.hang_after is not None and config.engine.hang_after <= 0:
        raise ConfigError(f"{origin}: engine.hang_after: 0 is not allowed, expected more than 0 s, or null for never")
    for key, size in (("memory.limit", memory.limit), ("engine.kv_budget", config.engine.kv_budget)):
        if size is not None and size < _LEAST_BYTES:
            raise ConfigError(f"{origin}: {key}: {size} is not allowed, expected 64MiB or more")
    if config.server.max_body < 1024:
        raise ConfigError(f"{origin}: server.max_body: {config.server.max_body} is not allowed, expected 1KiB or more")


def _check_limits(limits: LimitsConfig, origin: str) -> None:
    for name in ("header_time", "body_time", "idle", "slow_client"):
        if getattr(limits, name) <= 0:
            raise ConfigError(f"{origin}: limits.{name}: 0 is not allowed, expected more than 0 s")
    if not 1024 <= limits.header_size <= 16384:
        raise ConfigError(f"{origin}: limits.header_size: {limits.header_size} is not allowed, expected 1KiB to 16KiB")


def _check_group(entry: ModelEntry, where: str) -> None:
    """What a worker group can't do is refused here, so that nobody finds out by its absence."""
    if len(entry.hosts) < 2:
        raise ConfigError(f"{where}.hosts: one host is no group; name two or more, or leave the key out")
    if entry.backend == "mpi":
        raise ConfigError(
            f"{where}.backend: mpi is not supported: mpirun starts the processes itself and gives only the first "
            "one its input, so the others could not be told what to do nor end with the server; use ring, or jaccl"
        )
    for key in ("adapter", "embeddings"):
        if getattr(entry, key):
            raise ConfigError(
                f"{where}.{key}: a model that is served by several hosts can't have it; leave out one of both"
            )
    if entry.source.endswith(".gguf"):
        raise ConfigError(f"{where}.source: several hosts can't serve a .gguf file; name a folder in MLX's format")
    if entry.backend == "jaccl":
        for index, one in enumerate(entry.hosts):
            rdma = [] if isinstance(one, str) else one.rdma
            if [device is None for device in rdma] != [other == index for other in range(len(entry.hosts))]:
                raise ConfigError(
                    f"{where}.hosts[{index}]: jaccl needs rdma: its device towards each of the {len(entry.hosts)} "
                    "hosts, null towards itself"
                )


def _check_keys(keys: list[ApiKey], origin: str) -> None:
    for index, one in enumerate(keys):
        if sum(place is not None for place in (one.key, one.env, one.file)) != 1:
            raise ConfigError(f"{origin}: access.keys[{index}] ({one.name}): expected exactly one of key, env and file")
        if one.name in {other.name for other in keys[:index]}:
            raise ConfigError(f"{origin}: access.keys[{index}].name: {one.name!r} is there twice")
