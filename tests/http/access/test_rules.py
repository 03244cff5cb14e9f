"""Who may ask what, and from where: the decisions."""

import pytest

from plimsoll.config import ApiKey
from plimsoll.errors import ConfigError
from plimsoll.http.access.permissions import (
    Caller,
    Keys,
    Role,
    host_allowed,
    is_loopback,
    origin_allowed,
    presented_keys,
    read_keys,
    role_needed,
)
from plimsoll.units import Secret

KEY = "a-key-of-some-length"


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("GET", "/", None),
        ("HEAD", "/", None),
        ("GET", "/static/app.js", None),
        ("GET", "/health", None),
        ("GET", "/health/live", None),
        ("GET", "/health/ready", None),
        ("GET", "/openapi.json", None),
        ("POST", "/health", Role.ADMIN),
        ("POST", "/static/app.js", Role.ADMIN),
        ("GET", "/metrics", Role.READ),
        ("GET", "/v1/models", Role.READ),
        ("GET", "/admin/models", Role.READ),
        ("GET", "/admin/events", Role.READ),
        ("POST", "/api/show", Role.READ),
        ("POST", "/v1/chat/completions", Role.USER),
        ("POST", "/v1/chat/completions/", Role.USER),
        ("POST", "/v1/messages/count_tokens", Role.USER),
        ("POST", "/api/generate", Role.USER),
        ("POST", "/api/pull", Role.ADMIN),
        ("GET", "/admin/search", Role.ADMIN),
        ("DELETE", "/api/delete", Role.ADMIN),
        ("POST", "/admin/cleanup", Role.ADMIN),
        ("POST", "/admin/models/a/b/unload", Role.ADMIN),
        ("POST", "/a/route/that/nobody/listed", Role.ADMIN),
        ("GET", "/a/route/that/nobody/listed", Role.READ),
        ("OPTIONS", "/v1/models", Role.ADMIN),
        ("GET", "/static", Role.READ),
        ("GET", "/healthy", Role.READ),
    ],
)
def test_a_request_needs_the_least_role_that_is_enough_for_it(method, path, role):
    assert role_needed(method, path) == role


@pytest.mark.parametrize(
    ("bound", "host", "allowed"),
    [
        # DNS rebinding: a page's own domain that was pointed at this machine still says its name.
        ("127.0.0.1", "evil.example", False),
        ("127.0.0.1", "evil.example:11435", False),
        ("127.0.0.1", "127.0.0.1.evil.example", False),
        ("127.0.0.1", "localhost.evil.example", False),
        ("127.0.0.1", "evillocalhost", False),
        ("127.0.0.1", "192.168.1.7", False),
        ("127.0.0.1", "0.0.0.0", False),
        ("127.0.0.1", "0177.0.0.1", False),
        ("127.0.0.1", "2130706433", False),
        ("127.0.0.1", "user@localhost", False),
        ("127.0.0.1", "evil.example/@localhost", False),
        ("127.0.0.1", "evil.example\\@localhost", False),
        ("127.0.0.1", "localhost:port", False),
        ("127.0.0.1", "[::1", False),
        ("127.0.0.1", ":80", False),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.1:11435", True),
        ("127.0.0.1", "127.9.9.9", True),
        ("127.0.0.1", "localhost:11435", True),
        ("127.0.0.1", "LocalHost.", True),
        ("127.0.0.1", "plimsoll.localhost", True),
        ("127.0.0.1", "[::1]:11435", True),
        ("127.0.0.1", "box.lan:11435", True),
        ("127.0.0.1", "BOX.lan", True),
        ("192.168.1.7", "192.168.1.7:11435", True),
        ("192.168.1.7", "192.168.1.8:11435", False),
        ("192.168.1.7", "evil.example", False),
        ("studio.lan", "studio.lan:11435", True),
        ("0.0.0.0", "192.168.1.7:11435", True),
        ("0.0.0.0", "[fe80::1]:11435", True),
        ("0.0.0.0", "evil.example", False),
        ("::", "192.168.1.7", True),
        ("::", "evil.example:11435", False),
    ],
)
def test_only_a_host_that_means_this_server_is_answered(bound, host, allowed):
    assert host_allowed(host, frozenset({bound}), frozenset({"box.lan"})) == allowed


@pytest.mark.parametrize(
    ("origin", "site", "visit", "allowed"),
    [
        (None, "", False, True),  # curl, clients
        (None, "none", False, True),  # typed into the address bar
        (None, "same-origin", False, True),
        (None, "cross-site", False, False),  # <img>, <script>
        (None, "same-site", False, False),  # another port of localhost
        (None, "cross-site", True, True),  # a link that was followed
        ("https://evil.example", "cross-site", False, False),
        ("https://evil.example", "", False, False),  # an old browser's simple POST
        ("https://evil.example", "cross-site", True, False),
        ("http://localhost:3000", "same-site", False, False),
        ("null", "cross-site", False, False),  # a sandboxed frame, a file
        ("", "", False, False),
        ("http://localhost:11435", "same-origin", False, True),
        ("http://LOCALHOST:11435", "", False, True),
        ("https://localhost:11435", "", False, True),  # through a proxy that speaks TLS
        ("ftp://localhost:11435", "", False, False),
        ("http://localhost:11435.evil.example", "", False, False),
        ("https://chat.example", "cross-site", False, True),
        ("https://chat.example:8443", "cross-site", False, False),
        ("http://chat.example", "cross-site", False, False),
    ],
)
def test_a_page_of_another_origin_may_not_ask(origin, site, visit, allowed):
    assert origin_allowed(origin, site, "localhost:11435", {"https://chat.example"}, visit=visit) == allowed


def test_a_default_port_may_be_said_or_not():
    assert origin_allowed("https://box.lan", "", "box.lan:443", (), visit=False)
    assert origin_allowed("http://box.lan:80", "", "box.lan", (), visit=False)
    assert not origin_allowed("http://box.lan:443", "", "box.lan", (), visit=False)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False)],
)
def test_only_loopback_addresses_are_open_without_a_key(host, loopback):
    assert is_loopback(host) == loopback


@pytest.mark.parametrize(
    ("authorization", "x_api_key", "found"),
    [
        ("", "", []),
        ("Bearer abc", "", ["abc"]),
        ("bearer  abc ", "", ["abc"]),
        ("", " abc ", ["abc"]),
        ("Bearer abc", "def", ["abc", "def"]),
        ("Basic abc", "", []),
        ("Basic abc", "def", ["def"]),
        ("Bearer", "", []),
        ("abc", "", []),
    ],
)
def test_a_key_comes_in_either_header(authorization, x_api_key, found):
    assert presented_keys(authorization, x_api_key) == found


def test_every_key_is_found_with_its_name_and_role_and_nothing_else_is():
    callers = [Caller("a", Role.READ), Caller("b", Role.ADMIN)]
    keys = Keys([(callers[0], KEY), (callers[1], KEY + "2")])
    assert [keys.find(KEY), keys.find(KEY + "2")] == callers
    assert [keys.find(text) for text in ("", KEY[:-1], KEY + " ", KEY.upper(), "\udcff")] == [None] * 5


def test_keys_are_read_from_the_configuration_a_variable_and_a_file(monkeypatch, tmp_path):
    monkeypatch.setenv("ADA", "key-of-ada")
    (tmp_path / "key").write_text("key-of-bob\n")
    keys = read_keys(
        [
            ApiKey(name="eve", role="read", key=Secret("key-of-eve")),
            ApiKey(name="ada", role="user", env="ADA"),
            ApiKey(name="bob", role="admin", file=str(tmp_path / "key")),
        ]
    )
    found = [keys.find(f"key-of-{name}") for name in ("eve", "ada", "bob")]
    assert found == [Caller("eve", Role.READ), Caller("ada", Role.USER), Caller("bob", Role.ADMIN)]


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"env": "NOT_SET_ANYWHERE"}, "access.keys[0].env: the environment variable NOT_SET_ANYWHERE is not set"),
        ({"file": "/no/such/file"}, "access.keys[0].file: /no/such/file can't be read"),
        ({"file": "short"}, "access.keys[0].file: the key must have 8 or more"),
        ({"file": "binary"}, "is not text"),
    ],
)
def test_a_key_that_can_not_be_read_is_said_to_be_so_without_the_key(monkeypatch, tmp_path, entry, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short").write_text("secret")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError) as caught:
        read_keys([ApiKey(name="a", role="user", **entry)])
    assert sentence in caught.value.message
    assert "secret" not in caught.value.message


def test_one_key_can_not_have_two_roles():
    with pytest.raises(ConfigError, match=r"access.keys\[1\].key: this is the same key as that of 'a'") as caught:
        read_keys([ApiKey(name=name, role="user", key=Secret(KEY)) for name in "ab"])
    assert KEY not in caught.value.message
