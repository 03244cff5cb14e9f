"""YAML to frozen structs: the defaults of ``config.yaml`` with the user's file merged over them.

Every error is a ``ConfigError`` that names the key's path, the value and what is allowed.
"""

import functools
import itertools
import os
import reprlib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml

from plimsoll.errors import ConfigError
from plimsoll.units import Bytes, Seconds, Secret, from_yaml, to_plain
from plimsoll.validation import choices, find, find_hidden, is_valid_key, take_apart

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
    responses_folder: str | None


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
    patience: Seconds


HostName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:@%-]*$", max_length=253)]


class HostConfig(Section, frozen=True):
    """A host of a group: its name for the remote shell, its address for the other hosts, its devices for jaccl."""

    host: HostName
    address: HostName | None = None
    rdma: list[str | None] = []


class SamplingEntry(Section, frozen=True):
    """What holds where a request says nothing; what is unset here is as the model's own files have it."""

    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0)] | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=10)] | None = None


class RequestDefaults(Section, frozen=True, kw_only=True):
    """What holds where a request says nothing, of an entry or of a profile."""

    sampling: SamplingEntry = SamplingEntry()
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None
    thinking: bool | None = None
    reasoning_budget: Annotated[int, msgspec.Meta(ge=0)] | None = None
    system_prefix: Annotated[str, msgspec.Meta(max_length=100_000)] | None = None


ProfileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]


class ProfileEntry(RequestDefaults, frozen=True, kw_only=True):
    """Other defaults for requests to ``name:profile``, or to one of ``aliases``."""

    aliases: list[ModelName] = []


class ModelEntry(RequestDefaults, frozen=True, kw_only=True):
    """One model that may be served. ``idle_ttl`` unset means ``models.idle_ttl``; ``adapter`` is a LoRA's folder.

    With ``hosts`` a worker group serves it, one process on each. ``aliases`` are other names of it, ``profiles`` other
    defaults for requests to ``name:profile``.
    """

    source: Annotated[str, msgspec.Meta(min_length=1)]
    enabled: bool = True
    pin: bool = False
    idle_ttl: Seconds | msgspec.UnsetType | None = msgspec.UNSET
    context: Annotated[int, msgspec.Meta(ge=16)] | None = None
    adapter: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    embeddings: bool = False
    chat_template: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    aliases: list[ModelName] = []
    profiles: dict[ProfileName, ProfileEntry] = {}
    hosts: list[HostName | HostConfig] = []
    backend: Literal["ring", "jaccl", "mpi"] = "ring"
    split: Literal["tensor", "pipeline"] = "tensor"


class ModelsConfig(Section, frozen=True):
    builtin: bool
    default: ModelName | None
    dir: str | None
    dirs: list[Annotated[str, msgspec.Meta(min_length=1)]]
    programs: list[Literal["huggingface", "lm-studio"]]
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
    stored_responses: Bytes
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
    prompt_cache: Bytes | None
    disk_cache: Bytes
    kv_budget: Bytes | None
    wired_memory: Bytes | None
    dequantize: Literal["auto", "always", "never"]
    blas: str
    prompt_lookup: Literal["auto", "off"]
    stop_grace: Seconds | None
    spare_worker: bool
    hang_after: Seconds | None
    preempt: bool


class RequestsConfig(Section, frozen=True):
    """What is kept of the newest requests."""

    keep_texts: bool


class ClusterConfig(Section, frozen=True):
    """For ``serve --cluster``. A queue adds a replica after ``grow_after``, room removes it after ``shrink_after``."""

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
    requests: RequestsConfig
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


@functools.cache
def defaults() -> dict[str, Any]:
    """The shipped ``config.yaml`` as plain data, read once: it comes with the code. Don't change what it returns."""
    text = resources.files("plimsoll").joinpath("config.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def find_user_file(explicit: str | os.PathLike[str] | None = None) -> Path | None:
    """``--config``, ``$PLIMSOLL_CONFIG``, ``~/.config/plimsoll/config.yaml``, ``./plimsoll.yaml``: first one."""
    for named in (explicit, os.environ.get("PLIMSOLL_CONFIG")):
        if named:
            return Path(named).expanduser()
    return next((path for path in (default_user_file(), Path("plimsoll.yaml")) if path.is_file()), None)


def default_user_file() -> Path:
    """``~/.config/plimsoll/config.yaml``, where a user's file is made."""
    base = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    return base / "plimsoll" / "config.yaml"


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
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text: {error}") from None
    return read_text(text, str(path))


def read_text(text: str, origin: str) -> dict[str, Any]:
    """The keys in the text of a file, which may be empty. Raises ``ConfigError`` for what is no mapping in YAML."""
    try:
        data = yaml.load(text, _Loader)  # noqa: S506 - _Loader is a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: is not YAML: {_yaml_problem(error)}") from None
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error.message}") from None
    except RecursionError:
        raise ConfigError(f"{origin}: is nested too deeply") from None
    except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError) as error:
        # PyYAML's own conversions raise these, as for the date 2026-13-99.
        raise ConfigError(f"{origin}: has a value that YAML can't read: {error}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{origin}: must be a mapping of sections, not {type(data).__name__}")
    return data


def _yaml_problem(error: yaml.YAMLError) -> str:
    """What is wrong and where, without the text of the line, which may hold a key."""
    if not isinstance(error, yaml.MarkedYAMLError) or (mark := error.problem_mark) is None:
        return "it holds a character that YAML does not allow"
    # The messages of these two errors quote the value, an alias (*...) or a tag (!...), which may be a key.
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
    """What is wrong in the file: the key's path, its value, what is allowed."""
    fault = take_apart(error)
    path = fault.path
    if fault.is_key:
        bad = next(key for key in find(path, data)[1] if not is_valid_key(key, path, Config))
        return f"{path or 'the file'}: {_shown(bad)} is not allowed as a name, expected {fault.allowed}"
    if fault.unknown:
        return f"{_join(path, fault.unknown[:100])}: unknown key; see config.yaml for the keys there are"
    if fault.missing:
        return f"{_join(path, fault.missing)}: this key is required"
    allowed = choices(path, Config) or fault.allowed
    if path.startswith("access"):
        # Never the value: somebody may have written a key where it does not belong.
        return f"{path}: what stands there is not allowed, expected {allowed}"
    if "[...]" in path:
        path, value = find_hidden(path, data, Config, from_yaml)
    else:
        _, value = find(path, data)
    return f"{path or 'the file'}: {_shown(value)} is not allowed, expected {allowed}"


def _shown(value: Any) -> str:
    """``repr``, but short: YAML's references make a small file a value of any size."""
    try:
        return _SHORT.repr(value)
    except ValueError:
        return "a number of thousands of digits"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}".lstrip(".").replace("[...]", "*")


def _check_sense(config: Config, origin: str) -> None:
    """Refuse values that contradict each other, which types can't express."""
    _check_keys(config.access.keys, origin)
    _check_limits(config.limits, origin)
    _check_names(config.models.entries, origin)
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


def _check_names(entries: dict[str, ModelEntry], origin: str) -> None:
    """Refuse a name that would mean two models."""
    taken = {name: f"the entry {name}" for name in entries}
    for name, entry in entries.items():
        own = [("aliases", alias) for alias in entry.aliases]
        own += [(f"profiles.{profile}", f"{name}:{profile}") for profile in entry.profiles]
        own += [
            (f"profiles.{called}.aliases", alias) for called, one in entry.profiles.items() for alias in one.aliases
        ]
        for key, called in own:
            if called in taken:
                raise ConfigError(f"{origin}: models.entries.{name}.{key}: {called} is {taken[called]} already")
            taken[called] = f"in {key.partition('.')[0]} of {name}"


def _check_group(entry: ModelEntry, where: str) -> None:
    """Refuse what a worker group can't do, so that no setting is ignored in silence."""
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
