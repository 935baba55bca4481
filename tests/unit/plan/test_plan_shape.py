"""Sizes: the shipped models' against what their authors publish, the ranks' against the table that loads them."""

import math
from itertools import product

import pytest
from jobs import config, job, tiny

from srpo.errors import UserError
from srpo.megatron.layout import layout
from srpo.plan.shape import MODELS, Shape


@pytest.mark.parametrize(("model", "parameters"), [
    ("Qwen2.5-7B", 7_615_616_512), ("models/Qwen2.5-32B", 32_763_876_352), ("Qwen/Qwen2.5-72B", 72_706_203_648)])
def test_shipped_models_have_the_published_number_of_parameters(model, parameters):
    assert job(model=model).shape.parameters == parameters


def test_a_directory_of_the_users_goes_first(tmp_path):
    folder = tmp_path / "Qwen2.5-7B"
    folder.mkdir()
    (folder / "config.json").write_text((MODELS / "qwen2.5-32b/config.json").read_text())
    made = config(str(folder))
    assert made.model.path == str(folder) and Shape.of(made).layers == 64


def test_an_unknown_model_names_the_known_ones():
    with pytest.raises(UserError, match="no config.json, .* known: qwen2.5-32b, qwen2.5-72b, qwen2.5-7b"):
        config("Qwen3-235B")


@pytest.mark.parametrize(("kind", "tied"), list(product(("llama", "qwen2", "qwen3"), (False, True))))
def test_stages_hold_what_the_table_of_tensors_says(kind, tied):
    hf, shape = tiny(kind, tied, kv_heads=4)
    for tensor, pipeline in product((1, 2, 4), (1, 2, 4)):
        held = [0] * pipeline
        for entry in layout(hf, tensor, pipeline):
            held[entry.stage] += entry.size * math.prod(entry.shape) // entry.shape[entry.axis]
        assert [sum(shape.stage(s, tensor, pipeline)) for s in range(pipeline)] == held
