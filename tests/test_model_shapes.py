"""The shapes of the models that the recipes name are those that were published.

bash tests/run.sh tests/test_model_shapes.py
"""

import pytest
import yaml
from transformers import AutoConfig

from r1zero import ROOT
from r1zero.estimate import model_shapes
from r1zero.preflight.model import without_weights

PUBLISHED = {  # parameters, as the hub tells them of each model's safetensors
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen2.5-3B": 3_085_938_688,
    "Qwen2.5-7B": 7_615_616_512,
    "DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "tiny": 473_216,
}
OWNER = {"DeepSeek-R1-Distill-Qwen-1.5B": "deepseek-ai"}


@pytest.mark.parametrize("name", model_shapes.SHAPES)
class TestShape:
    def test_has_the_published_number_of_parameters(self, name):
        base = name.removesuffix("-Instruct")
        if name != base:  # the same but for its context
            assert model_shapes.SHAPES[name][:-1] == model_shapes.SHAPES[base][:-1]
            return
        assert without_weights(model_shapes.config_of(name)).num_parameters() == PUBLISHED[name]

    def test_is_that_of_the_models_own_config(self, name):
        path = f"{OWNER.get(name, 'Qwen')}/{name}"
        try:
            published = AutoConfig.from_pretrained(path)
        except OSError:
            pytest.skip(f"no config.json of {path} in the hub's cache: hf download {path} config.json")
        ours = model_shapes.config_of(name)
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        sizes += ("intermediate_size", "vocab_size", "tie_word_embeddings", "max_position_embeddings")
        for size in sizes:
            assert getattr(ours, size) == getattr(published, size), size


def test_every_recipe_names_a_model_of_the_table_or_makes_it():
    for path in (ROOT / "configs").glob("*.yaml"):
        name = yaml.safe_load(path.read_text()).get("model_name_or_path")
        assert name in (None, "models/tiny") or model_shapes.config_of(name), path


def test_a_model_is_known_by_the_last_part_of_its_name():
    by_hub, in_folder = model_shapes.config_of("Qwen/Qwen2.5-3B"), model_shapes.config_of("models/Qwen2.5-3B")
    assert by_hub.to_dict() == in_folder.to_dict() and by_hub.hidden_size == 2048
    assert model_shapes.config_of("Qwen/Qwen9-3B") is None
