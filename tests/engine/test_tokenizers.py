"""A tokenizer that is read before its model."""

import json
import os

import pytest
import tiny_llama

from plimsoll.engine.load import loading
from plimsoll.engine.load.loading import TokenizerReader
from plimsoll.engine.protocol import EngineOptions


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


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "OfAnotherVersion"}),
        ("tokenizer_config.json", {"extra_special_tokens": ["<|im_start|>"]}),
        ("config.json", {"num_hidden_layers": None, "rope_theta": None}),
    ],
)
def test_settings_of_another_version_of_transformers_cost_no_tokenizer(tmp_path, file, settings):
    tiny_llama.build(tmp_path)
    whole = TokenizerReader().read(tmp_path).result()
    path = tmp_path / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    read = TokenizerReader().read(tmp_path).result()
    assert read.encode("Hello <|im_end|>") == whole.encode("Hello <|im_end|>")
    assert read.chat_template == whole.chat_template
    assert read.eos_token_ids == whole.eos_token_ids
