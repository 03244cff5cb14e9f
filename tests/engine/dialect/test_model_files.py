"""What the files of a model's folder say of sampling, ends and templates, wherever it is kept."""

import contextlib
import json

import pytest
import tiny_llama
from mlx_helpers import open_engine, request
from msgspec.structs import replace

from plimsoll.catalog.files import problem
from plimsoll.catalog.model_card import NEUTRAL, chat_template, end_ids, sampling_defaults
from plimsoll.engine.dialect import dialect, model_files
from plimsoll.engine.prompt_bounds import TookTooLong, time_limit
from plimsoll.engine.protocol import Sampling
from plimsoll.errors import BadRequest, LoadFailed


def write(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))


def test_sampling_is_what_generation_config_says_as_far_as_it_makes_sense(tmp_path):
    assert sampling_defaults(tmp_path) == {}
    odd = {"top_p": 2, "min_p": None, "repetition_penalty": 0, "do_sample": True, "max_length": 20}
    write(tmp_path, generation_config={"temperature": 0.6, "top_k": 20, **odd})
    assert sampling_defaults(tmp_path) == {"temperature": 0.6, "top_k": 20}
    write(tmp_path, generation_config="{broken")
    assert sampling_defaults(tmp_path) == {}


def test_ends_of_all_files_count_together(tmp_path):
    write(
        tmp_path,
        config={"eos_token_id": 2, "text_config": {"eos_token_id": [3]}},
        generation_config={"eos_token_id": [4, 2]},
    )
    assert end_ids(tmp_path) == {2, 3, 4}
    write(
        tmp_path,
        config={"eos_token_id": None, "text_config": None},
        generation_config={"eos_token_id": [True, -1, "x"]},
    )
    assert end_ids(tmp_path) == set()


@pytest.mark.parametrize("name", ["chat_template", "processor_config", "tokenizer_config"])
def test_a_template_is_found_in_any_file(tmp_path, name):
    assert chat_template(tmp_path) is None
    write(tmp_path, **{name: {"chat_template": "T"}})
    assert chat_template(tmp_path) == "T"
    write(
        tmp_path,
        **{name: {"chat_template": [{"name": "tool_use", "template": "U"}, {"name": "default", "template": "D"}]}},
    )
    assert chat_template(tmp_path) == "D"
    (tmp_path / "chat_template.jinja").write_text("J")
    assert chat_template(tmp_path) == "J"


def test_an_index_that_a_conversion_left_behind_does_not_matter_beside_whole_weights(tmp_path):
    """The model was called incomplete, though its weights were all there."""
    write(tmp_path, config={})
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks 2 of 2" in problem(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert problem(tmp_path) is None
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"")
    assert "lacks 1 of 2" in problem(tmp_path)


def test_a_request_comes_before_the_files(tmp_path):
    tiny_llama.build(tmp_path)
    write(tmp_path, generation_config={"temperature": 0.3, "top_k": 7, "min_p": 0.1, "eos_token_id": [5]})
    engine = open_engine(tmp_path)
    asked = replace(request("hello", Sampling(temperature=0.9)), given=("temperature",))
    prompt = engine.prepare(asked)
    assert (prompt.sampling.temperature, prompt.sampling.top_k, prompt.sampling.min_p) == (0.9, 7, 0.1)
    assert engine.prepare(replace(asked, given=None)).sampling.top_k == 0
    assert 5 in engine._model.loaded.tokenizer.eos_token_ids
    told = engine.info.sampling
    assert told["min_p"] == {"value": 0.1, "from": "generation_config.json"}
    assert told["presence_penalty"] == {"value": 0.0, "from": "neutral"}
    engine.close()


def test_neutral_is_what_a_request_has_that_says_nothing():
    assert {name: getattr(Sampling(), name) for name in NEUTRAL} == NEUTRAL


def test_an_entrys_template_takes_the_place_of_the_models(tmp_path):
    tiny_llama.build(tmp_path)
    (tmp_path / "own.jinja").write_text("{% for m in messages %}OWN {{ m.content }}{% endfor %}")
    engine = open_engine(tmp_path, chat_template=str(tmp_path / "own.jinja"))
    assert engine._model.loaded.tokenizer.decode(engine.prepare(request("hello")).tokens) == "OWN hello"
    engine.close()
    with pytest.raises(LoadFailed, match="chat_template"):
        open_engine(tmp_path, chat_template=str(tmp_path / "none.jinja"))


ENDLESS = (
    "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}"
)


def test_an_endless_template_costs_one_time_limit_and_a_load_goes_on(tmp_path, monkeypatch):
    """Its end tokens and its needs were each asked for as long, and the needs by the first request."""
    tiny_llama.build(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(ENDLESS)
    monkeypatch.setattr(model_files, "_TEMPLATE_S", 0.2)
    monkeypatch.setattr(dialect, "_PROBE_S", 0.2)
    monkeypatch.setattr(dialect, "_TEMPLATE_S", 0.2)
    overdue = []

    @contextlib.contextmanager
    def counted(seconds):
        try:
            with time_limit(seconds):
                yield
        except TookTooLong:
            overdue.append(seconds)
            raise

    monkeypatch.setattr(model_files, "time_limit", counted)
    monkeypatch.setattr(dialect, "time_limit", counted)
    engine = open_engine(tmp_path)
    assert len(overdue) == 1
    with pytest.raises(BadRequest, match="took more than"):
        engine.prepare(request("hello"))
    assert len(overdue) == 2
    engine.close()


def test_a_template_is_looked_at_while_the_model_is_loaded(tmp_path):
    """The first request waited for it."""
    tiny_llama.build(tmp_path)
    engine = open_engine(tmp_path)
    assert "dialect" in vars(engine._model.prompts)
    engine.close()


def test_an_entrys_template_ends_answers_with_its_own_mark(tmp_path):
    tiny_llama.build(tmp_path)
    own = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_start|>{% endfor %}"
    (tmp_path / "own.jinja").write_text(own)
    engine = open_engine(tmp_path, chat_template=str(tmp_path / "own.jinja"))
    tokenizer = engine._model.loaded.tokenizer
    assert tokenizer.get_vocab()["<|im_start|>"] in tokenizer.eos_token_ids
    engine.close()
