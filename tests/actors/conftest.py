import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def fakes():
    """The module with actors that run by hand and workers without processes."""
    spec = importlib.util.spec_from_file_location("fakes", Path(__file__).with_name("fakes.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def stage(fakes):
    """Actors without threads, a clock without time; afterwards no actor is left in the registry."""
    stage = fakes.Stage()
    yield stage
    stage.close()
    assert not stage.broken
