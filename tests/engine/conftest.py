import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def gguf_files():
    """The module that writes small GGUF files."""
    spec = importlib.util.spec_from_file_location("gguf_files", Path(__file__).with_name("gguf_files.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
