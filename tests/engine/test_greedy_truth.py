"""The built-in model's greedy answers are mlx-lm's own, token for token."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plimsoll import config
from plimsoll.catalog.fetch import resolve
from plimsoll.catalog.installed import default_cache_dir
from plimsoll.catalog.source import BUILTIN
from plimsoll.engine.handle.environment import worker_environment
from plimsoll.errors import LoadFailed

# Two ways of summing the same products differ in the last bits; below this gap they may choose differently.
NEAR_TIE = 1e-3


@pytest.mark.timeout(400)
def test_greedy_answers_of_the_built_in_model_are_those_of_mlx_lm(capsys):
    try:
        folder = resolve(BUILTIN, cache_dir=default_cache_dir(config.load()), offline=False, progress=lambda *_: None)
    except LoadFailed as error:
        pytest.skip(f"the built-in model is not to be had here: {error}")
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("greedy_truth.py"), folder],
        env={**os.environ, **worker_environment("auto")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    with capsys.disabled():
        print(f" [{result['tokens']} tokens, BLAS {result['blas']}, tokens/s {result['tokens_per_s']}]")  # noqa: T201
        for near in result["different"]:
            print(f" [near tie: {near['prompt']!r} {near['how']}, gap {near['gap']:.2e}]")  # noqa: T201
    assert [entry for entry in result["different"] if entry["gap"] >= NEAR_TIE] == []
