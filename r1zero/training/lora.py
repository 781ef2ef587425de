"""LoRA with an engine that samples apart: base weights that stay exact, and settings under which the two agree.

TRL hands vLLM the adapter merged into the base weights. For every push it merges in place, and then subtracts the
same again. In float32 that leaves behind 5e-5 of the adapter at most, which does not add up. In bfloat16 and float16
both steps round: after 50 pushes in bfloat16 the base has moved by a fifth to a third of the adapter's norm, and with
it the reference model, the adapter that is saved and a run that is resumed (TRL's issue 6688). docs/recipes.md has the
figures.
"""

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers.integrations import is_deepspeed_zero3_enabled

ROUNDED = (torch.bfloat16, torch.float16)


def keep_base_exact(model):
    """Makes `model`, if it is a PeftModel, unmerge its adapter to the very bits that its base weights had before.

    The copies lie in the machine's memory, 2 bytes for every weight beside which there is an adapter, in each process.
    They are made at the first merge, when the weights have their type and place, and serve all later ones, as frozen
    weights do not change. Weights in float32 have no copy, nor have those of 4 and 8 bits, which setting_errors keeps
    from being merged. ZeRO-3 needs none: there a gathered copy is merged and thrown away.
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
    """The 16-bit parameters that merging writes to, each once where two layers share it, as a list."""
    weights = {}
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            for weight in module.get_base_layer().parameters(recurse=False):
                if weight.dtype in ROUNDED:
                    weights[id(weight)] = weight
    return list(weights.values())


def target_errors(values, model):
    """Layers of lora_target_modules that a model on the meta device lacks, as a list of lines. A text is a pattern."""
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
    """What would keep generation and training from being the same model. values: every setting."""
    errors = []
    if not values.use_peft:
        return errors
    # TRL samples, takes old log-probabilities and updates in training mode: transformers draws another mask for each,
    # and vLLM none at all
    if values.lora_dropout > 0 and not values.disable_dropout:
        errors.append(
            f"lora_dropout is {values.lora_dropout:g}, with which the model that is updated is not the one that "
            "sampled: set --lora_dropout 0 (TRL's default is 0.05)"
        )
    if values.use_vllm and values.load_in_4bit:
        errors.append(
            "load_in_4bit does not go with use_vllm, which gets the adapter merged into the weights, and 4 bits round "
            "all of it away: set --load_in_4bit false, or --use_vllm false"
        )
    if values.use_vllm and values.load_in_8bit:
        errors.append(
            "load_in_8bit does not go with use_vllm, which takes no such weights from a trainer: set --load_in_8bit "
            "false, or --use_vllm false"
        )
    return errors
