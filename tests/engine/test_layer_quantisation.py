"""Layers with bits of their own, whose names stand otherwise in config.json than in the files."""

import json

import mlx.core as mx
import pytest
import tiny_llama
from mlx import nn
from mlx.utils import tree_flatten
from mlx_helpers import Run, open_engine, request
from mlx_lm.utils import load_model

from plimsoll.catalog.weigh import weigh

NAMES = {
    "as in the files": lambda name: f"language_model.{name}",
    "as transformers has it": lambda name: f"model.language_model.{name.removeprefix('model.')}",
    "without the part": lambda name: name,
}


def build(folder, name_of):
    """A language model inside of a model that sees, its first layer in 8 bits, the rest in 4."""
    tiny_llama.build(folder)
    config = json.loads((folder / "config.json").read_text())
    model, _ = load_model(folder)
    own, others = {"group_size": 32, "bits": 8}, {"group_size": 64, "bits": 4}

    def chosen(path, module):
        return hasattr(module, "to_quantized") and (own if "layers.0" in path else others)

    nn.quantize(model, class_predicate=chosen)
    weights = dict(tree_flatten(model.parameters()))
    quantized = [name.removesuffix(".scales") for name in weights if name.endswith(".scales")]
    quantization = {**others, "vision_tower.blocks.0": False}
    quantization |= {name_of(name): own for name in quantized if "layers.0" in name}
    stored = {f"language_model.{name}": array for name, array in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), stored, metadata={"format": "mlx"})
    outer = {"model_type": "mistral3", "text_config": config, "quantization": quantization}
    (folder / "config.json").write_text(json.dumps({**outer, "eos_token_id": config["eos_token_id"]}))
    return sum(array.size for name, array in tree_flatten(load_dense(folder, config)))


def load_dense(folder, config):
    from mlx_lm.models.llama import Model, ModelArgs

    return Model(ModelArgs.from_dict(config)).parameters()


@pytest.mark.parametrize("way", NAMES)
def test_such_a_model_loads_and_weighs_what_it_takes(tmp_path, way):
    """What it takes without packing was told at half for layers in smaller groups than the rest."""
    values = build(tmp_path, NAMES[way])
    engine = open_engine(tmp_path, dequantize=False)
    assert len(Run(engine).submit("a", request("fox", max_tokens=4)).finish().tokens["a"]) == 4
    engine.close()
    assert weigh(tmp_path).dense_bytes == 4 * values
