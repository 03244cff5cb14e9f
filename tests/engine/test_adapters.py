"""LoRA adapters: over the model, into its weights, and refused where they belong to another one."""

import json
import shutil

import mlx.core as mx
import mlx_helpers as helpers
import numpy as np
import pytest
import tiny_llama
from mlx import nn
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.utils import load_model, save_model

from plimsoll.actors.load_needs import footprint_key
from plimsoll.actors.replies import Failed, Finished
from plimsoll.catalog.source import ModelSource
from plimsoll.catalog.weigh import weigh, weigh_source
from plimsoll.engine.load import loading
from plimsoll.engine.protocol import EngineOptions, Sampling
from plimsoll.errors import ContextTooLong, LoadFailed

KEYS = {"self_attn.q_proj": (64, 64), "mlp.down_proj": (128, 64)}
LAYERS, RANK, SCALE = 2, 4, 3.0
QUESTIONS = ["hello", "who are you?", "船"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llama.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return write_adapter(tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def merged(folder, adapter, tmp_path_factory):
    """The model with the adapter added to its weights by numpy."""
    path = tmp_path_factory.mktemp("merged")
    shutil.copytree(folder, path, dirs_exist_ok=True)
    weights = {name: np.array(array) for name, array in mx.load(str(folder / "model.safetensors")).items()}
    parts = {name: np.array(array) for name, array in mx.load(str(adapter / "adapters.safetensors")).items()}
    for name in {name.rpartition(".")[0] for name in parts}:
        weights[f"{name}.weight"] = (
            weights[f"{name}.weight"] + SCALE * (parts[f"{name}.lora_a"] @ parts[f"{name}.lora_b"]).T
        )
    mx.save_safetensors(str(path / "model.safetensors"), {name: mx.array(array) for name, array in weights.items()})
    return path


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory):
    """The model in 8 bits."""
    path = tmp_path_factory.mktemp("packed")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, path / name)
    model, settings = load_model(folder)
    nn.quantize(model, group_size=32, bits=8)
    save_model(path, model)
    (path / "config.json").write_text(json.dumps({**settings, "quantization": {"group_size": 32, "bits": 8}}))
    return path


def write_adapter(path, keys=KEYS, **different):
    """A random adapter as mlx_lm.lora writes it; dropout must play no part when it is used."""
    parameters = {"rank": RANK, "scale": SCALE, "dropout": 0.5, "keys": list(keys)}
    settings = {"fine_tune_type": "lora", "num_layers": LAYERS, "lora_parameters": parameters, **different}
    path.mkdir(exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps(settings))
    mx.random.seed(5)
    parts = {}
    for layer in range(LAYERS):
        for key, (inputs, outputs) in keys.items():
            name = f"model.layers.{layer}.{key}"
            parts[f"{name}.lora_a"] = mx.random.normal((inputs, RANK)) * 0.2
            parts[f"{name}.lora_b"] = mx.random.normal((RANK, outputs)) * 0.2
    mx.save_safetensors(str(path / "adapters.safetensors"), parts)
    return path


def answers(folder, **options):
    engine = helpers.open_engine(folder, **options)
    run = helpers.Run(engine)
    for text in QUESTIONS:
        run.submit(text, helpers.request(text, max_tokens=24))
    run.finish()
    engine.close()
    return [run.texts[text] for text in QUESTIONS]


def load(folder, **options):
    return loading.load(folder, EngineOptions(cache_dir="", **options), lambda *_: None).model


def lora_layers(model):
    return [name for name, module in model.named_modules() if isinstance(module, LoRALinear)]


def test_answers_are_those_of_the_merged_weights_and_not_the_models_own(folder, merged, adapter):
    tuned = answers(folder, adapter=str(adapter))
    assert tuned == answers(merged)
    assert all(one != other for one, other in zip(tuned, answers(folder), strict=True))


def test_float32_weights_take_the_adapter_in_and_packed_ones_keep_it_beside_them(folder, packed, adapter):
    assert lora_layers(load(folder, adapter=str(adapter))) == []
    assert lora_layers(load(packed, adapter=str(adapter), dequantize=True)) == []
    beside = load(packed, adapter=str(adapter))
    assert len(lora_layers(beside)) == LAYERS * len(KEYS)
    assert not any(module.training for _, module in beside.named_modules())


def test_a_packed_model_gives_the_same_states_with_the_adapter_beside_or_in_its_weights(packed, adapter):
    prompt = mx.array([[5, 6, 7, 8]])
    beside = load(packed, adapter=str(adapter))(prompt)
    inside = load(packed, adapter=str(adapter), dequantize=True)(prompt)
    assert mx.abs(beside - inside).max() < 1e-2
    assert mx.abs(beside - load(packed)(prompt)).max() > 1


def test_the_adapters_bytes_are_weighed(folder, adapter, tmp_path):
    plain, with_it = weigh(folder), weigh(folder, adapter)
    added = 4 * LAYERS * RANK * sum(sum(shape) for shape in KEYS.values())
    assert with_it.stored_bytes - plain.stored_bytes == added
    assert with_it.dense_bytes - plain.dense_bytes == added
    source = ModelSource("tuned", "folder", str(folder), str(adapter))
    assert weigh_source(source, tmp_path) == with_it
    with pytest.raises(ValueError, match=r"has no adapters\.safetensors"):
        weigh(folder, tmp_path)


def missing(path):
    return path / "none"


def of_peft(path):
    (path / "adapter_config.json").write_text("{}")
    (path / "adapter_model.safetensors").write_bytes(b"")
    return path


def of_a_wider_model(path):
    return write_adapter(path, {"self_attn.q_proj": (96, 96)})


def of_another_kind_of_model(path):
    write_adapter(path)
    settings = json.loads((path / "adapter_config.json").read_text())
    settings["lora_parameters"]["keys"] = ["attention.wq"]
    (path / "adapter_config.json").write_text(json.dumps(settings))
    return path


def without_rank(path):
    write_adapter(path, lora_parameters={"scale": 1.0, "dropout": 0.0, "keys": list(KEYS)})
    return path


def without_layers(path):
    write_adapter(path)
    (path / "adapter_config.json").write_text('{"lora_parameters": {}}')
    return path


def cut_short(path):
    write_adapter(path)
    (path / "adapters.safetensors").write_bytes((path / "adapters.safetensors").read_bytes()[:100])
    return path


def with_rubbish_for_config(path):
    write_adapter(path)
    (path / "adapter_config.json").write_text("{")
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (missing, r"has no adapter_config\.json"),
        (of_peft, r"has no adapters\.safetensors.*PEFT has to be converted first"),
        (
            of_a_wider_model,
            r"can't be used with this model: model.*lora_.: adapter shape .*96.* does not match.*; and 1 more",
        ),
        (of_another_kind_of_model, "can't be used with this model: .*not an adapter parameter"),
        (without_rank, "can't be used with this model: its config has no 'rank'"),
        (without_layers, "can't be used with this model: .*num_layers"),
        (cut_short, "can't be used with this model"),
        (with_rubbish_for_config, "can't be used with this model"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_adapter_that_does_not_fit_says_why_in_one_line(folder, tmp_path, make, message):
    with pytest.raises(LoadFailed, match=message) as caught:
        load(folder, adapter=str(make(tmp_path)))
    assert "\n" not in caught.value.message


def test_an_adapter_is_part_of_what_a_footprint_is_kept_for(folder, adapter):
    plain = ModelSource("m", "folder", str(folder))
    assert footprint_key(plain, False) == f"folder:{folder}:stored"
    assert footprint_key(ModelSource("m", "folder", str(folder), str(adapter)), False) != footprint_key(plain, False)


def test_the_entrys_adapter_reaches_the_worker(server, folder, adapter, tmp_path):
    entries = {
        "tuned": {"source": str(folder), "adapter": str(adapter)},
        "wrong": {"source": str(folder), "adapter": str(tmp_path)},
    }
    live = server(entries)
    greedy = {"sampling": Sampling(temperature=0), "max_tokens": 24}
    tuned = live.chat("tuned", "hello", **greedy)
    assert isinstance(tuned.ending(), Finished)
    assert tuned.text == answers(folder, adapter=str(adapter))[0]
    refused = live.chat("wrong").ending()
    assert isinstance(refused, Failed)
    assert "has no adapter" in refused.error.message


def test_the_entrys_context_bounds_prompt_and_answer(server, folder):
    live = server({"small": {"source": str(folder), "context": 40}})
    ending = live.chat("small", "fox", sampling=Sampling(temperature=0, logit_bias={1: -100})).ending()
    assert isinstance(ending, Finished)
    assert ending.reason == "length"
    assert ending.usage.prompt_tokens + ending.usage.completion_tokens == 40
    refused = live.chat("small", "dog " * 60).ending()
    assert isinstance(refused, Failed)
    assert refused.error.code == ContextTooLong.code
    assert "40" in refused.error.message
