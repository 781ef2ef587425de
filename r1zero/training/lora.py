"""Keep LoRA's base weights exact, and refuse settings that make vLLM sample from another model.

TRL merges the adapter into the base weights on every weight sync to vLLM, and subtracts it again. In float32 that
leaves an error of at most 5e-5 of the adapter, and it does not add up. In bfloat16 and float16 both operations round:
after 50 syncs in bfloat16 the base has moved by a fifth to a third of the adapter's norm, and with it the reference
model, the saved adapter and a resumed run (TRL's issue 6688). docs/recipes.md has the figures.
"""

from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers.integrations import is_deepspeed_zero3_enabled

ROUNDED = (torch.bfloat16, torch.float16)


def keep_base_exact(model):
    """Make a PeftModel restore the exact bits of its base weights after a merge. Leave other models as they are.

    Each process copies the adapted 16-bit weights to the machine's memory, 2 bytes a weight. It does so at the first
    merge, when the weights have their type and device. The copies serve all later merges, as frozen weights do not
    change. Weights in float32 need no copy, weights of 4 and 8 bits are never merged (see setting_errors), and ZeRO-3
    merges a gathered copy and throws it away.
    """
    if not isinstance(model, PeftModel):
        return
    merge, unmerge, copies = model.merge_adapter, model.unmerge_adapter, []

    def merge_adapter(*args, **kwargs):
        if not copies and not is_deepspeed_zero3_enabled():
            for weight in adapted_weights(model):
                copies.append((weight, weight.detach().to("cpu", copy=True)))
        merge(*args, **kwargs)

    def unmerge_adapter():
        unmerge()
        for weight, copy in copies:
            weight.data.copy_(copy)

    model.merge_adapter, model.unmerge_adapter = merge_adapter, unmerge_adapter


def adapted_weights(model):
    """Return the 16-bit parameters that a merge writes to, as a list without repeats."""
    weights = {}
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            for weight in module.get_base_layer().parameters(recurse=False):
                if weight.dtype in ROUNDED:
                    weights[id(weight)] = weight
    return list(weights.values())


def name_base_by_whole_path(model):
    """Make a PeftModel's saved adapter name a local base model by its whole path. Leave hub ids and other models."""
    for config in getattr(model, "peft_config", {}).values():
        folder = Path(config.base_model_name_or_path)
        if folder.is_dir():
            config.base_model_name_or_path = str(folder.absolute())


def target_errors(values, model):
    """Return an error line for each of lora_target_modules that a model on the meta device lacks.

    A str is a pattern, and is not checked.
    """
    if not values.use_peft or not isinstance(values.lora_target_modules, list):
        return []
    names = [name for name, _ in model.named_modules()]
    known = sorted({name.rpartition(".")[2] for name in names if name.endswith("_proj")})
    errors = []
    for target in values.lora_target_modules:
        if target != "all-linear" and not any(f".{name}".endswith(f".{target}") for name in names):
            errors.append(f"lora_target_modules names {target}, which no layer of the model is: it has {known}")
    return errors


def setting_errors(values):
    """Return error lines for settings that make another model sample than is trained. values: every setting."""
    if not values.use_peft:
        return []
    errors = []
    # TRL samples, computes old log-probabilities and updates in training mode: transformers draws a new dropout mask
    # for each, and vLLM has none
    if values.lora_dropout > 0 and not values.disable_dropout:
        errors.append(
            f"lora_dropout is {values.lora_dropout:g}, so the model that is updated is not the one that "
            "sampled: set --lora_dropout 0 (TRL's default is 0.05)"
        )
    quantized = {
        "load_in_4bit": "TRL merges the adapter into the weights, and 4 bits round all of it away",
        "load_in_8bit": "it takes no such weights from a trainer",
    }
    for name, why in quantized.items():
        if values.use_vllm and getattr(values, name):
            errors.append(f"{name} does not go with use_vllm: {why}: set --{name} false, or --use_vllm false")
    return errors
