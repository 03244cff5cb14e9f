"""Ollama's own client, and a catalog of real entries behind it."""

from collections.abc import Iterator
from typing import Any

import ollama
import pytest

from plimsoll.catalog.names import Catalog


@pytest.fixture
def server(server: Any) -> Any:
    server.app.ctx.state.catalog = Catalog(server.config.models)
    return server


@pytest.fixture
def llama(server: Any) -> Iterator[ollama.Client]:
    with ollama.Client(server.url, timeout=60) as made:
        yield made
