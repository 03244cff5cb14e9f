"""A server for all tests of the command line."""

import hub as hub_module
import pytest
import shell as shell_module


@pytest.fixture(scope="session")
def shell():
    """The module that runs commands and servers."""
    return shell_module


@pytest.fixture(scope="session")
def hubs():
    """The module that plays the hub."""
    return hub_module


@pytest.fixture(scope="session")
def plimsoll(shell):
    return shell.plimsoll


@pytest.fixture(scope="module")
def url(shell, tmp_path_factory):
    """A server with a model that echoes, one that is slow, one that fails to load and one that never fits."""
    entries = {
        "echo": {"source": "fake:"},
        "other": {"source": "fake:hold=64MiB"},
        "slow": {"source": "fake:tokens_per_s=20,answer=word,length=1000"},
        "broken": {"source": "fake:fail_load=the file is torn"},
        "huge": {"source": "fake:hold=90000000MiB"},
    }
    with shell.serving(tmp_path_factory.mktemp("server"), entries) as url:
        yield url


@pytest.fixture
def no_server():
    """A URL where nobody answers."""
    return "http://127.0.0.1:1"
