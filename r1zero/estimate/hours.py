"""Bound the hours of a run from below: its operations at a card's peak, its weights at the bandwidth of the memory.

Attention, padding, what is computed again, the optimizer, weight syncs and rewards count nothing.
"""

import math
import re
from typing import NamedTuple

from r1zero import schedule
from r1zero.estimate import memory

SHORT = 4  # of the tokens that a prompt or a completion may have, assume one in so many


class Card(NamedTuple):
    """What a card has: GB of memory; what it does at most: operations of matrix products and bytes moved a second."""

    memory: float
    operations: float
    bytes: float
    bf16: bool = True


# Operations in bfloat16, a T4's in float16, summed in float32, without sparsity. From NVIDIA's data sheets:
CARDS = {
    # www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf; of its 16 GB
    # PyTorch sees 15.6
    "t4": Card(15.6, 65e12, 320e9, bf16=False),
    "l4": Card(24, 121e12, 300e9),  # resources.nvidia.com/en-us-l4/l4-datasheet
    # d1.awsstatic.com/product-marketing/ec2/NVIDIA_AWS_A10G_DataSheet_FINAL_02_17_2022.pdf
    "a10g": Card(24, 70e12, 600e9),
    # www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.1.pdf
    "rtx-3090": Card(24, 71e12, 936e9),
    # images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf
    "rtx-4090": Card(24, 165.2e12, 1008e9),
    "l40s": Card(48, 362e12, 864e9),  # resources.nvidia.com/en-us-l40s/l40s-datasheet-28413
    # www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-nvidia-us-2188504-web.pdf
    "a100-40": Card(40, 312e12, 1555e9),
    "a100-80": Card(80, 312e12, 2039e9),
    # resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet, SXM
    "h100": Card(80, 989e12, 3350e9),
    "h200": Card(141, 989e12, 4800e9),  # nvdam.widen.net/s/nb5zzzsjdf/hpc-datasheet-sc23-h200-datasheet-3002446, SXM
    "b200": Card(180, 2250e12, 8000e9),  # nvdam.widen.net/s/wwnsxrhm2w/blackwell-datasheet-3384703, HGX
}


def find_card(name):
    """Return the Card of a name such as "h100", or torch's "NVIDIA H100 80GB HBM3"; None if the table lacks it."""
    words = set(re.split(r"\W+", name.lower().replace("gb", "")))
    return next((card for known, card in CARDS.items() if words >= set(known.split("-"))), None)


def floors(able, values, model, prompts, completions, longest, group):
    """Return the least seconds (dict) that a card takes for the passes over one generation.

    able: dict of `operations` and `bytes` a second; values: every setting; model: without LoRA, on any device;
    prompts, completions: tokens of all rows; longest: tokens of the longest completion; group: rows of one prompt.
    """
    trained = memory.trained_parameters(model, values)
    body = model.num_parameters() - memory.embedding_parameters(model) + (trained if values.use_peft else 0)
    head = model.get_input_embeddings().weight.numel()
    number = 2 if schedule.mixed_precision(values) or str(values.dtype) in ("bfloat16", "float16") else 4
    forward = 2 * (body * (prompts + completions) + head * completions) / able["operations"]
    # A group's prompt is computed once. All rows are decoded together, and each of their tokens reads all weights,
    # which the cards of one vLLM engine share. A server has cards of its own.
    sampled = 2 * (body * (prompts / group + completions) + head * completions) / able["operations"]
    engine = values.vllm_tensor_parallel_size if values.use_vllm else 1
    decoding = longest * (body + head) * number / engine / able["bytes"]
    is_served = values.use_vllm and values.vllm_mode == "server"
    # TRL scores completions with the old weights, if they differ from those that sampled or of the first step
    has_old = values.gradient_accumulation_steps % (schedule.micro_batches(values) * values.num_iterations) or (
        values.use_vllm and values.vllm_importance_sampling_correction
    )
    return {
        "generation": 0 if is_served else max(sampled, decoding),
        "scoring": forward * (bool(has_old) + bool(values.beta)),
        "forward": forward * values.num_iterations,
        "backward": forward * values.num_iterations * (1 if values.use_peft else 2),  # frozen weights: no gradient
    }


def least_hours(able, values, model, rows, held_out, longest, strategy):
    """Return the least hours of a run (float, None if its steps are not known), and the tokens assumed (two ints).

    able, values, model: as for floors; rows: training problems, held_out: those of an evaluation, each None if not
    known; longest: tokens of the longest prompt; strategy: a machine.Strategy.
    """
    plan = schedule.schedule(values, rows, strategy.processes)
    tokens = (longest // SHORT, values.max_completion_length // SHORT)
    if plan["steps"] is None:
        return None, tokens

    def least(sequences, group):
        return floors(able, values, model, sequences * tokens[0], sequences * tokens[1], tokens[1], group)

    generations = plan["completions_in_all"] / plan["completions"]
    generation = least(plan["completions"] / strategy.processes, values.num_generations)
    seconds = generations * sum(generation.values())
    if schedule.evaluates(values):
        every = plan["steps_an_epoch"] or math.inf
        if values.eval_strategy == "steps":
            every = values.eval_steps or values.logging_steps
            every = every if every >= 1 else every * plan["steps"]
        evaluations = math.floor(plan["steps"] / every) + bool(values.eval_on_start)
        batches = max(1, (held_out or 0) // (values.per_device_eval_batch_size * strategy.processes))
        batch = least(values.per_device_eval_batch_size, values.num_generations_eval or values.num_generations)
        scored = batch["scoring"] + batch["forward"] / values.num_iterations
        seconds += evaluations * batches * (batch["generation"] + scored)
    return seconds / 3600, tokens
