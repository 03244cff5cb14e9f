"""What takes MLX's place on a CPU gives what MLX gives."""

import mlx.core as mx
import numpy as np
import pytest

from plimsoll.engine.load import cpu_math

mlx_attend, mlx_logsumexp = cpu_math._attend, cpu_math._logsumexp
MASKS = ["none", "causal", "of queries", "of rows", "of heads", "added", "of padding alone", "added, with nothing left"]


def mask_of(kind, rows, heads, length, context):
    return {
        "none": None,
        "causal": "causal",
        "of queries": mx.random.uniform(shape=(length, context)) > 0.3,
        "of rows": (mx.arange(context) >= 20 * mx.arange(rows)[:, None])[:, None, None],
        "of heads": mx.random.uniform(shape=(rows, heads, length, context)) > 0.3,
        "added": mx.random.normal((length, context)),
        "of padding alone": mx.zeros((length, context), mx.bool_),
        "added, with nothing left": mx.full((length, context), -np.inf),
    }[kind]


@pytest.fixture
def turns(monkeypatch):
    """Few scores at once, so that queries take turns that don't come out even."""
    monkeypatch.setattr(cpu_math, "_MOST_SCORES", 20000)


@pytest.fixture
def no_mlx(monkeypatch):
    """Fails where the work is handed to MLX."""
    for name in ("_attend", "_exp", "_sigmoid", "_tanh", "_logsumexp"):
        monkeypatch.setattr(cpu_math, name, None)


@pytest.mark.usefixtures("turns", "no_mlx")
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize(
    "shape",
    [(1, 9, 3, 1, 1200, 64), (3, 4, 4, 1, 500, 16), (2, 8, 2, 33, 300, 64), (1, 6, 1, 65, 65, 32)],
    ids=["one query", "a batch", "a chunk", "a whole prompt"],
)
def test_attention_is_as_mlx_computes_it(kind, shape):
    rows, heads, shared, length, context, width = shape
    queries = mx.random.normal((rows, heads, length, width))
    # As a cache hands them out: a part of what is allocated.
    keys, values = (mx.random.normal((rows, shared, context + 56, size))[:, :, :context] for size in (width, 48))
    options = {"scale": width**-0.5, "mask": mask_of(kind, rows, heads, length, context)}
    expected = mlx_attend(queries, keys, values, **options)
    np.testing.assert_allclose(cpu_math.attend(queries, keys, values, **options), expected, atol=3e-6)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [(mx.float16, {}), (mx.float32, {"sinks": mx.zeros(4)}), (mx.float32, {"stream": mx.cpu})],
    ids=["half precision", "sinks", "a stream"],
)
def test_what_it_does_not_do_mlx_does(monkeypatch, dtype, options):
    asked = []
    monkeypatch.setattr(cpu_math, "_attend", lambda *_, **told: asked.append(told))
    one = mx.zeros((1, 4, 64, 32), dtype)
    cpu_math.attend(one, one, one, scale=0.5, mask="causal", **options)
    assert asked == [{"scale": 0.5, "mask": "causal", "sinks": None} | options]


@pytest.mark.usefixtures("no_mlx")
@pytest.mark.parametrize("name", ["exp", "sigmoid", "tanh"])
def test_elements_are_as_mlx_computes_them(name):
    values = mx.concatenate([mx.random.normal((200, 300)) * 40, mx.array([[np.inf, -np.inf, 0.0] * 100])]).T
    before = np.array(values)
    result = getattr(cpu_math, name)(values)
    with np.errstate(over="ignore"):
        expected = getattr(np, name, logistic)(before.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(result, expected, rtol=5e-6, atol=1e-37)
    np.testing.assert_array_equal(values, before)


@pytest.mark.usefixtures("no_mlx")
@pytest.mark.parametrize("keepdims", [True, False])
def test_sums_of_exponentials_are_as_mlx_computes_them(keepdims):
    values = mx.concatenate([mx.random.normal((3, 50000)) * 30, mx.full((1, 50000), -np.inf)])
    expected = mlx_logsumexp(values, axis=-1, keepdims=keepdims)
    np.testing.assert_allclose(cpu_math.logsumexp(values, axis=-1, keepdims=keepdims), expected, rtol=1e-6)


@pytest.mark.parametrize("given", [0.5, mx.array(0.5), mx.ones((8, 8)), mx.ones((80, 80), mx.float16)], ids=str)
def test_small_and_other_numbers_go_to_mlx(monkeypatch, given):
    asked = []
    real = cpu_math._exp
    monkeypatch.setattr(cpu_math, "_exp", lambda values: asked.append(values) or real(values))
    assert mx.allclose(cpu_math.exp(given), mx.array(np.exp(np.array(given, np.float32))), rtol=1e-3)
    assert len(asked) == 1
    assert asked[0] is given


def logistic(values):
    return 1 / (1 + np.exp(-values))
