"""The configuration: the defaults, the user's file over them, and every refusal by its key."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plimsoll import config
from plimsoll.errors import ConfigError

MODELS = ("qwen2.5-coder-32b", "deepseek-r1-distill-llama-70b", "phi3.5-mini-4k")


def refusal(user: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        config.parse(user)
    return caught.value.message


def test_the_shipped_file_holds_every_key_at_its_default() -> None:
    settings = config.load()
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 11435)
    assert (settings.memory.warning_percent, settings.memory.critical_percent) == (85, 95)
    assert settings.memory.emergency_percent == 98


def test_the_three_models_by_role_are_entries_that_can_be_switched_on() -> None:
    entries = config.load().models.entries
    assert set(MODELS) <= set(entries)
    assert not any(entries[name].enabled for name in MODELS)
    switched = config.parse({"models": {"entries": {MODELS[0]: {"enabled": True}}}})
    assert switched.models.entries[MODELS[0]].enabled
    assert switched.models.entries[MODELS[0]].source == entries[MODELS[0]].source


def test_what_check_prints_is_read_back_as_the_same() -> None:
    settings = config.parse({"memory": {"limit": "16GiB"}, "models": {"idle_ttl": None}})
    assert config.parse(yaml.safe_load(config.to_yaml(settings))) == settings


@pytest.mark.parametrize(
    ("text", "size"),
    [("16GiB", 16 << 30), ("1.5GB", 1_500_000_000), ("512M", 512 << 20), (65536, 65536), ("1 KiB", 1024)],
)
def test_sizes_are_written_as_people_write_them(text: Any, size: int) -> None:
    assert config.parse({"server": {"max_body": text}}).server.max_body == size


@pytest.mark.parametrize(("text", "seconds"), [("250ms", 0.25), ("30s", 30), ("5m", 300), ("2h", 7200), (1.5, 1.5)])
def test_times_are_written_as_people_write_them(text: Any, seconds: float) -> None:
    assert config.parse({"models": {"idle_ttl": text}}).models.idle_ttl == seconds


@pytest.mark.parametrize(
    ("user", "path", "value"),
    [
        ({"server": {"prot": 1}}, "server.prot", "unknown key"),
        ({"sever": {}}, "sever", "unknown key"),
        ({"server": {"port": "high"}}, "server.port", "'high'"),
        ({"server": {"port": 70000}}, "server.port", "70000"),
        ({"server": []}, "server", "[]"),
        ({"server": {"max_body": "16XB"}}, "server.max_body", "16XB"),
        ({"server": {"max_body": True}}, "server.max_body", "True"),
        ({"server": {"keepalive": 0}}, "server.keepalive", "0"),
        ({"models": {"idle_ttl": "5 parsecs"}}, "models.idle_ttl", "5 parsecs"),
        ({"memory": {"warning_percent": 96}}, "memory.warning_percent", "96"),
        ({"memory": {"critical_percent": 99}}, "memory.critical_percent", "99"),
        ({"memory": {"emergency_percent": 101}}, "memory.emergency_percent", "101"),
        ({"memory": {"warning_percent": -1}}, "memory.warning_percent", "-1"),
        ({"memory": {"limit": "1MiB"}}, "memory.limit", "1048576"),
        ({"engine": {"dequantize": "maybe"}}, "engine.dequantize", "maybe"),
        ({"logging": {"language": "fr"}}, "logging.language", "fr"),
        ({"limits": {"slow_client": 0}}, "limits.slow_client", "more than 0 s"),
        ({"limits": {"header_size": "32KiB"}}, "limits.header_size", "1KiB to 16KiB"),
        ({"limits": {"connections": 0}}, "limits.connections", "0"),
        ({"limits": {"requests_per_minute": 0}}, "limits.requests_per_minute", "0"),
        ({"access": {"keys": [{"name": "a"}]}}, "access.keys[0].role", "required"),
        ({"access": {"keys": [{"name": "a", "role": "user"}]}}, "access.keys[0] (a)", "exactly one of"),
        ({"access": {"keys": [{"name": "a", "role": "user", "env": "A"}] * 2}}, "access.keys[1].name", "there twice"),
        ({"access": {"keys": [{"name": "a", "role": "user", "key": "short"}]}}, "access.keys[0].key", "8 or more"),
        ({"access": {"keys": [{"name": "a", "role": "user", "key": "***"}]}}, "access.keys[0].key", "the key itself"),
        ({"access": {"origins": ["example.org"]}}, "access.origins[0]", "matching"),
        ({"models": {"entries": {"a": {"source": ""}}}}, "models.entries.a.source", "''"),
        ({"models": {"entries": {"a": {"sorce": "x"}}}}, "models.entries", "sorce"),
        ({"models": {"entries": {"a": {}}}}, "models.entries", "source"),
        ({"models": {"entries": {"a": {"source": "x", "pin": 3}}}}, "models.entries.a.pin", "3"),
        ({"models": {"entries": {"a": {"source": "x", "adapter": ""}}}}, "models.entries.a.adapter", "''"),
        ({"models": {"entries": {"a": {"source": "x", "embeddings": "yes"}}}}, "models.entries.a.embeddings", "yes"),
        ({"models": {"entries": {"a": 3}}}, "models.entries.a", "3"),
        ({"models": {"entries": {"../a": {"source": "x"}}}}, "models.entries", "../a"),
        ({"models": {"entries": {5: {"source": "x"}}}}, "models.entries", "5"),
    ],
)
def test_what_can_not_be_is_refused_with_the_keys_path_and_the_value(user: Any, path: str, value: str) -> None:
    message = refusal(user)
    assert path in message
    assert value in message


def test_the_first_file_that_is_found_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def port(number: int, *parts: str) -> Path:
        path = tmp_path.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"server: {{port: {number}}}")
        return path

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert config.load().server.port == 11435
    port(4, "plimsoll.yaml")
    assert config.load().server.port == 4
    port(3, "xdg", "plimsoll", "config.yaml")
    assert config.load().server.port == 3
    monkeypatch.setenv("PLIMSOLL_CONFIG", str(port(2, "env.yaml")))
    assert config.load().server.port == 2
    assert config.load(port(1, "given.yaml")).server.port == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("server: [", "is not YAML"),
        ("- a\n- b\n", "must be a mapping"),
        ("server: {port: 1}\nserver: {port: 2}\n", "written twice"),
        ("server: {port: 1, port: 2}\n", "line 1"),
        ("? [a]\n: b\n", "is not YAML"),
        ("a: !!python/object/apply:os.system [ls]\n", "is not YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_by_name(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert str(path) in caught.value.message
    assert expected in caught.value.message


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        config.load(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"not UTF-8|not YAML"):
        config.load(tmp_path / "binary.yaml")


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing here\n")
    assert config.load(tmp_path / "empty.yaml") == config.parse({})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


# A loaded machine is no bug: neither the time of a case nor of making it is judged.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(["server", "memory", "models", "engine", "logging", "x"]),
        JSON | st.dictionaries(st.sampled_from(["port", "limit", "entries", "blas", "level", "idle_ttl"]), JSON),
    )
)
def test_any_data_is_a_configuration_or_a_config_error(user: dict[str, Any]) -> None:
    with contextlib.suppress(ConfigError):
        config.parse(user)


# ---- what YAML itself makes of odd values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("server: {port: 2026-13-99}", "has a value that YAML can't read: month must be in 1..12"),
        ("server: {port: !!int abc}", "has a value that YAML can't read"),
        ("server: {port: !!bool abc}", "has a value that YAML can't read"),
        ("server: {port: !!timestamp abc}", "has a value that YAML can't read"),
        ("server: {port: 1" + "0" * 5000 + "}", "has a value that YAML can't read"),
        ("server: {port: 0x" + "f" * 9000 + "}", "server.port: a number of thousands of digits is not allowed"),
        ("server: {max_body: " + "9" * 400 + "GiB}", "is not allowed, expected a size up to 1 EiB"),
        ("server: {keepalive: " + "9" * 400 + "h}", "is not allowed, expected a time up to 10 years"),
        ("[" * 2000, "is nested too deeply"),
        ("1: 2", "the file: 1 is not allowed as a name, expected str"),
        ("null: 2", "the file: None is not allowed as a name, expected str"),
        ("server: &a {host: *a}", "server.host: .* is not allowed, expected str"),
    ],
)
def test_a_value_that_is_none_of_its_kind_is_a_config_error(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        config.load(tmp_path / "c.yaml")


def test_references_that_multiply_do_not_fill_the_memory_with_their_error(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 12)]
    (tmp_path / "c.yaml").write_text("\n".join([*lines, "server: {port: *a11}"]))
    with pytest.raises(ConfigError) as caught:
        config.load(tmp_path / "c.yaml")
    assert len(str(caught.value)) < 2000


def test_a_wrong_word_is_answered_with_the_words_there_are():
    with pytest.raises(
        ConfigError, match=r"engine\.dequantize: 'often' is not allowed, expected auto or always or never"
    ):
        config.parse({"engine": {"dequantize": "often"}})


def test_a_key_without_end_is_shown_short():
    with pytest.raises(ConfigError) as caught:
        config.parse({"server": {"x" * 5000: 1}})
    assert len(caught.value.message) < 300


GROUP = {"source": "fake:", "hosts": ["127.0.0.1", "mac2"]}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"hosts": ["127.0.0.1"]}, "entries.a.hosts: one host is no group"),
        ({"hosts": ["127.0.0.1", "-oProxyCommand=x"]}, "entries.a.hosts"),
        ({"backend": "mpi"}, "entries.a.backend: mpi is not supported: mpirun starts the processes itself"),
        ({"backend": "nccl"}, "expected ring or jaccl or mpi"),
        ({"split": "expert"}, "expected tensor or pipeline"),
        ({"backend": "jaccl"}, "entries.a.hosts[0]: jaccl needs rdma"),
        ({"adapter": "/lora"}, "entries.a.adapter: a model that is served by several hosts can't have it"),
        ({"embeddings": True}, "entries.a.embeddings: a model that is served by several hosts"),
        ({"source": "model.gguf"}, "entries.a.source: several hosts can't serve a .gguf file"),
    ],
)
def test_what_a_group_of_hosts_can_not_do_is_refused_by_its_key(changed: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal({"models": {"entries": {"a": GROUP | changed}}})


def test_a_group_of_hosts_may_talk_by_rdma() -> None:
    hosts = [{"host": "localhost", "rdma": [None, "rdma_en5"]}, {"host": "mac2", "rdma": ["rdma_en5", None]}]
    entry = config.parse({"models": {"entries": {"a": GROUP | {"hosts": hosts, "backend": "jaccl"}}}}).models.entries[
        "a"
    ]
    assert entry.backend == "jaccl"
