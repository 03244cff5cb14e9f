import fakes as module
import pytest


@pytest.fixture(scope="session")
def fakes():
    """The module with actors that run by hand and workers without processes."""
    return module


@pytest.fixture
def stage(fakes):
    """Actors without threads, a clock without time; afterwards no actor is left in the registry."""
    stage = fakes.Stage()
    yield stage
    stage.close()
    assert not stage.broken
