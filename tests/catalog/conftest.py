"""Sources resolved into a cache of the test's own, and how far that told it was."""

import pytest

from plimsoll.catalog.fetch import resolve


@pytest.fixture
def steps():
    return []


@pytest.fixture
def loads(tmp_path, steps):
    def load(source, *, offline=False):
        return resolve(source, cache_dir=tmp_path / "cache", offline=offline, progress=lambda *step: steps.append(step))

    return load
