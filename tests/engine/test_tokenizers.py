"""A tokenizer that is read before its model."""

import os

import pytest
import tiny_llama

from plimsoll.engine import loading
from plimsoll.engine.protocol import EngineOptions
from plimsoll.engine.tokenizers import TokenizerReader


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llama.build(tmp_path_factory.mktemp("tiny"))


def test_what_was_read_ahead_is_what_the_load_uses(folder):
    reader = TokenizerReader()
    ahead = reader.read(folder)
    loaded = loading.load(folder, EngineOptions(cache_dir=""), lambda *_: None, reader)
    assert loaded.tokenizer is ahead.result()
    assert (
        loaded.tokenizer.eos_token_ids
        == loading.load(folder, EngineOptions(cache_dir=""), lambda *_: None).tokenizer.eos_token_ids
    )


def test_files_that_have_changed_are_read_again(folder):
    reader = TokenizerReader()
    before = reader.read(folder)
    assert reader.read(folder) is before
    file = folder / "tokenizer.json"
    os.utime(file, ns=(1, 1))
    assert reader.read(folder) is not before


def test_a_broken_tokenizer_fails_the_load_and_not_the_reading_ahead(folder, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        (broken / file.name).write_bytes(b"{" if file.name == "tokenizer.json" else file.read_bytes())
    reader = TokenizerReader()
    reader.read(broken)
    with pytest.raises(Exception, match="Failed to parse tokenizer"):
        _ = loading.load(broken, EngineOptions(cache_dir=""), lambda *_: None, reader).tokenizer
