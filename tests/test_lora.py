"""A push of a LoRA adapter to vLLM leaves the base weights as they were.   bash tests/run.sh tests/test_lora.py"""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import each_case
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from r1zero.training import lora


def adapted(folder, dtype, **settings):
    """The model of a folder in a type, with an adapter that is not zero."""
    torch.manual_seed(0)
    settings = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False} | settings
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings))


def train_a_little(model):
    """An optimizer step of Adam's size on whatever is trained."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 1e-4 * torch.randn_like(parameter).sign()


def base_layers(model):
    """{name: (adapted layer, its base weight)}, without a copy."""
    named = model.named_modules()
    return {name: (layer, layer.base_layer.weight) for name, layer in named if hasattr(layer, "base_layer")}


def frozen(model):
    """A copy of every weight that is not trained."""
    return {name: weight.clone() for name, weight in model.named_parameters() if not weight.requires_grad}


def moved(model, weights):
    """The names of the weights (as of `frozen`) that are no longer what they were, to the bit."""
    now = dict(model.named_parameters())
    return [name for name, weight in weights.items() if not torch.equal(now[name], weight)]


OTHER_ADAPTERS = {
    "both ends of a tied weight": {"target_modules": ["embed_tokens", "lm_head"]},
    "DoRA, which divides by a norm": {"use_dora": True},
    "a layer that is trained whole": {"modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize(
    ("dtype", "settings"),
    [(torch.bfloat16, {}), (torch.float16, {}), *((torch.bfloat16, other) for other in OTHER_ADAPTERS.values())],
    ids=["bfloat16", "float16", *OTHER_ADAPTERS],
)
def test_pushes_hand_over_the_nearest_merged_weights_and_leave_the_base(tiny_model, dtype, settings):
    model = adapted(tiny_model, dtype, **settings)
    lora.keep_base_exact(model)
    layers, before = base_layers(model), frozen(model)
    exact = {name: weight.float() for name, (_, weight) in layers.items()}
    assert settings or len(layers) == 14  # 7 matrices in each of 2 layers
    for _ in range(3 if settings else 50):
        train_a_little(model)
        trained = {name: weight.clone() for name, weight in model.named_parameters() if weight.requires_grad}
        model.merge_adapter()
        assert moved(model, before) != []
        for name, (layer, weight) in () if settings else layers.items():
            product = layer.get_delta_weight("default")
            assert product.dtype == torch.float32 and product.abs().max() > 0
            assert torch.equal(weight, (exact[name] + product).to(dtype)), "rounded once, to the nearest"
        model.unmerge_adapter()
        assert moved(model, before) == [] and moved(model, trained) == []


# In float32 what pushes leave behind is small and does not add up; ZeRO-3 merges a gathered copy
@pytest.mark.parametrize(("dtype", "zero3"), [(torch.bfloat16, False), (torch.float32, False), (torch.bfloat16, True)])
def test_weights_that_need_a_copy_are_copied_once(tiny_model, monkeypatch, dtype, zero3):
    copied, adapted_weights = [], lora.adapted_weights

    def seen(model):
        weights = adapted_weights(model)
        copied.extend(map(id, weights))
        return weights

    monkeypatch.setattr(lora, "adapted_weights", seen)
    monkeypatch.setattr(lora, "is_deepspeed_zero3_enabled", lambda: zero3)
    model = adapted(tiny_model, dtype)
    lora.keep_base_exact(model)
    for _ in range(2):
        model.merge_adapter()
        model.unmerge_adapter()
    layers = [layer.base_layer for layer, _ in base_layers(model).values()]
    expected = [id(weight) for layer in layers for weight in layer.parameters()]
    assert sorted(copied) == (sorted(expected) if dtype == torch.bfloat16 and not zero3 else [])


@each_case("lora_settings.tsv")
def test_settings_that_part_generation_from_training_are_refused(case):
    values = {"use_peft": True, "lora_dropout": 0.0, "disable_dropout": False, "use_vllm": True}
    values |= {"load_in_4bit": False, "load_in_8bit": False} | json.loads(case["settings"])
    errors = lora.setting_errors(SimpleNamespace(**values))
    assert len(errors) == bool(case["error"]) and case["error"] in "".join(errors)


def test_saved_adapter_leaves_a_base_of_the_hub_its_name():
    """A run in test_training.py names a folder by its whole path."""
    model = SimpleNamespace(peft_config={"default": LoraConfig(base_model_name_or_path="Qwen/Qwen2.5-0.5B")})
    lora.name_base_by_whole_path(model)
    assert model.peft_config["default"].base_model_name_or_path == "Qwen/Qwen2.5-0.5B"
