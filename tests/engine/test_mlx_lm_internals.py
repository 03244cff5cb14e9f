import sys

import pytest
from mlx_lm.generate import BatchGenerator, GenerationBatch

from plimsoll.engine import mlx_lm_internals
from plimsoll.engine.mlx_lm_internals import MlxLmDoesNotFit, check_version, missing_names
from plimsoll.engine.protocol import EngineOptions
from plimsoll.engine.worker import choose_engine


def test_the_installed_version_has_every_name(capsys):
    assert missing_names() == []
    check_version()
    assert capsys.readouterr().err == ""


def test_another_version_with_every_name_is_used_with_a_warning(capsys):
    check_version("0.99.0")
    assert "tested with mlx-lm 0.32.2, and 0.99.0 is installed" in capsys.readouterr().err


def test_a_method_that_is_gone_is_named_in_one_sentence(monkeypatch):
    monkeypatch.delattr(GenerationBatch, "_step")
    monkeypatch.delattr(sys.modules["mlx_lm.generate"], "_merge_caches")
    with pytest.raises(MlxLmDoesNotFit) as raised:
        check_version("0.33.1")
    assert "tested with mlx-lm 0.32.2; generate._merge_caches, GenerationBatch._step are missing" in str(raised.value)
    assert "pip install mlx-lm==0.32.2" in str(raised.value)


def test_an_attribute_that_is_set_no_more_is_named(monkeypatch):
    def init(self, model):
        self.model = model

    monkeypatch.setattr(BatchGenerator, "__init__", init)
    assert "BatchGenerator._generation_batch" in missing_names()
    assert "BatchGenerator._unprocessed_sequences" in missing_names()


def test_a_worker_says_so_before_it_reads_a_model(monkeypatch, tmp_path):
    monkeypatch.setattr(mlx_lm_internals, "missing_names", lambda: ["BatchGenerator._make_batch"])
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(MlxLmDoesNotFit, match=r"BatchGenerator\._make_batch is missing"):
        choose_engine(tmp_path, EngineOptions(str(tmp_path)))
