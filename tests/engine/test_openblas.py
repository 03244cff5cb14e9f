"""The OpenBLAS that comes as a package, made fit for MLX."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from plimsoll.engine.handle import environment as openblas
from plimsoll.engine.handle.environment import worker_environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the package is for Linux")

MULTIPLY = """
import mlx.core as mx
import numpy as np
from plimsoll.engine.load.weights import blas_in_use
rng = np.random.default_rng(1)
left, right = rng.normal(size=(2, 65, 65)).astype("float32")
assert np.allclose(np.array(mx.array(left) @ mx.array(right)), left @ right, atol=1e-4)
print(blas_in_use())
"""


def test_without_an_installed_one_workers_compute_with_the_packaged_one(tmp_path: Path) -> None:
    variables = worker_environment("auto", tmp_path / "cache", root=tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", MULTIPLY], env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    assert done.stdout == "openblas\n", done.stderr


def test_it_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = openblas.packaged_openblas(tmp_path)
    assert made
    assert [file.name for file in (tmp_path / "blas").iterdir()] == [Path(made).name]
    monkeypatch.setattr(openblas, "_rename_routines", pytest.fail)
    assert openblas.packaged_openblas(tmp_path) == made


def test_where_it_can_not_be_made_workers_start_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(openblas.sysconfig, "get_path", lambda _: "/bin")
    monkeypatch.setattr(
        openblas.subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError("no patchelf"))
    )
    assert "LD_PRELOAD" not in worker_environment("auto", tmp_path, root=tmp_path)
    assert "no patchelf" in caplog.text
    assert not list((tmp_path / "blas").iterdir())


def test_without_the_package_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openblas.util, "find_spec", lambda _: None)
    assert openblas.packaged_openblas(tmp_path) is None
