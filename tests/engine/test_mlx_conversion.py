"""``plimsoll convert``'s work, held against mlx-lm's own conversion, and what is left of one that fails."""

import json

import mlx.core as mx
import pytest
import tiny_llama
from mlx_lm.convert import convert as mlx_lm_convert
from mlx_lm.utils import load_model

from plimsoll.catalog.conversion import Conversion, convert_folder, estimate, refuse_again
from plimsoll.errors import BadRequest, LoadFailed

ROOM = 8 << 30
LAYERS = 8  # the recipes tell first, last and some middle layers from the others


def no_progress(_stage, _done, _total):
    pass


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return tiny_llama.build(tmp_path_factory.mktemp("source") / "dense", num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def quantized(dense, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "quantized"
    mlx_lm_convert(str(dense), str(folder), quantize=True, q_bits=8, q_group_size=32)
    return folder


def tokens_of(folder):
    model, _ = load_model(folder)
    ids = [5, 9, 300]
    for _ in range(12):
        ids.append(int(model(mx.array([ids]))[0, -1].argmax()))
    return ids


@pytest.mark.parametrize(
    ("conversion", "same"),
    [
        (Conversion(), {"quantize": True, "q_bits": 4, "q_group_size": 64}),
        (Conversion(bits=8, group_size=32, dtype="float16"), {"quantize": True, "q_bits": 8, "q_group_size": 32}),
        (Conversion(mode="mxfp4"), {"quantize": True, "q_mode": "mxfp4"}),
        (Conversion(recipe="mixed_3_6"), {"quantize": True, "q_group_size": 64, "quant_predicate": "mixed_3_6"}),
        (Conversion(dtype="bfloat16"), {}),
        (Conversion(dequantize=True), {"dequantize": True}),
    ],
    ids=["4 bits", "8 bits", "mxfp4", "recipe", "cast", "dense"],
)
def test_the_result_is_that_of_mlx_lm(conversion, same, dense, quantized, tmp_path):
    source = quantized if conversion.dequantize else dense
    mlx_lm_convert(str(source), str(tmp_path / "theirs"), dtype=conversion.dtype, **same)
    expected = estimate(source, conversion)
    convert_folder(source, conversion, tmp_path / "ours", most_bytes=expected.memory_bytes, progress=no_progress)
    theirs, ours = (mx.load(str(tmp_path / which / "model.safetensors")) for which in ("theirs", "ours"))
    assert ours.keys() == theirs.keys()
    assert all(mx.array_equal(ours[name], theirs[name]) for name in theirs)
    configs = [json.loads((tmp_path / which / "config.json").read_text()) for which in ("theirs", "ours")]
    assert configs[0] == configs[1]
    assert tokens_of(tmp_path / "ours") == tokens_of(tmp_path / "theirs")
    weights = (tmp_path / "ours" / "model.safetensors").stat().st_size
    assert 0.8 * weights < expected.weight.stored_bytes < 1.5 * weights


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (Conversion(bits=7), "--q-bits is 7, expected one of 2, 3, 4, 5, 6, 8"),
        (Conversion(group_size=16), "--q-group-size"),
        (Conversion(mode="fp5"), "--q-mode is fp5"),
        (Conversion(recipe="best"), "--q-recipe"),
        (Conversion(dtype="int8"), "--dtype"),
        (Conversion(dequantize=True, bits=4), "not both"),
        (Conversion(mode="mxfp8", bits=8), "of its own"),
        (Conversion(recipe="mixed_4_6", bits=4), "leave --q-bits out"),
    ],
)
def test_what_can_not_be_is_refused_by_name(wrong, word):
    with pytest.raises(BadRequest, match=word):
        wrong.check()


def test_what_is_quantised_is_not_quantised_again(dense, quantized):
    with pytest.raises(BadRequest, match="quantised already"):
        refuse_again(quantized, "q", Conversion())
    with pytest.raises(BadRequest, match="nothing to make dense"):
        refuse_again(dense, "d", Conversion(dequantize=True))
    refuse_again(dense, "d", Conversion())
    refuse_again(quantized, "q", Conversion(dequantize=True))


def models_in(folder):
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]


def test_a_process_that_takes_more_than_its_bound_is_ended_and_leaves_nothing(dense, tmp_path):
    with pytest.raises(LoadFailed, match="more than its bound"):
        convert_folder(dense, Conversion(), tmp_path / "out", most_bytes=1, progress=no_progress)
    assert models_in(tmp_path) == []


def test_ctrl_c_leaves_nothing_half(dense, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_folder(dense, Conversion(), tmp_path / "out", most_bytes=ROOM, progress=interrupt)
    assert models_in(tmp_path) == []
    assert not [path for path in (tmp_path / ".work").iterdir() if path.is_dir()]


def test_what_mlx_lm_can_not_read_is_told_in_one_sentence(dense, tmp_path):
    source = tmp_path / "strange"
    source.mkdir()
    for file in dense.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"model_type": "nobodys"}))
    with pytest.raises(LoadFailed, match="can't be converted: Model type nobodys not supported"):
        convert_folder(source, Conversion(), tmp_path / "out", most_bytes=ROOM, progress=no_progress)
    assert models_in(tmp_path) == ["strange"]
