"""How many steps a run takes and how much memory, worked out before any weight is loaded: the plan of `--dry_run`.

The memory of weights, gradients and optimizer follows from what each strategy keeps on a card. That of the activations
is an estimate, which no formula gives exactly.
"""

import math
from typing import NamedTuple

import torch

GIB = 2**30
CONTEXT = 1.0 * GIB  # of CUDA, NCCL and fragmentation
HEAD_TOKENS = 1024  # tokens whose logits TRL's chunked head holds at a time


class Cost(NamedTuple):
    """Bytes that one trained parameter takes with AdamW, by what they hold."""

    weight: int
    gradient: int
    moments: int  # two numbers, or what 8-bit optimizers make of them
    float32_copy: int


COSTS = {
    # The weights are loaded in float32 (`dtype`, TRL's default); gradients and both moments have their type
    "float32": Cost(weight=4, gradient=4, moments=8, float32_copy=0),
    # The weights are loaded in bfloat16 or float16, and so all else has 16 bits too
    "16 bits": Cost(weight=2, gradient=2, moments=4, float32_copy=0),
    # LoRA: PEFT makes the adapters in float32, whatever the type of the frozen weights
    "adapters": Cost(weight=4, gradient=4, moments=8, float32_copy=0),
    # DeepSpeed in bf16 or fp16: it trains in that type, and updates a float32 copy of the weights
    "DeepSpeed": Cost(weight=2, gradient=2, moments=8, float32_copy=4),
}
EIGHT_BIT_MOMENTS, EMBEDDING_MOMENTS = 2, 8  # bytes a parameter; transformers leaves the embedding's in float32


def span(values):
    """Optimizer steps that one generation serves. values: every setting, or TRL's GRPOConfig."""
    steps_per_generation = values.steps_per_generation or values.gradient_accumulation_steps
    return steps_per_generation * values.num_iterations / values.gradient_accumulation_steps


def schedule(values, rows, processes):
    """Prompts, completions and steps of a run, as a dict.

    values: every setting; rows: training problems, or None where their number is not known, which leaves the steps
    of an epoch None, and those of the run too where `max_steps` does not say them.
    """
    steps_per_generation = values.steps_per_generation or values.gradient_accumulation_steps
    completions = values.generation_batch_size or values.per_device_train_batch_size * processes * steps_per_generation
    prompts = max(1, completions // values.num_generations)
    steps_an_epoch, steps, completions_in_all = None, None, None
    if rows is not None:
        steps_an_epoch = rows // prompts * span(values)
        steps = math.ceil(values.num_train_epochs * steps_an_epoch)
    if values.max_steps > 0:
        steps = values.max_steps
    if steps is not None:
        completions_in_all = math.ceil(steps / span(values)) * completions
    return {
        "prompts": prompts,
        "completions": completions,
        "span": span(values),
        "steps_an_epoch": steps_an_epoch,
        "steps": steps,
        "completions_in_all": completions_in_all,
    }


def trained_parameters(model, values):
    """How many parameters of a model (on any device) are trained: all, or those of the LoRA adapters."""
    if not values.use_peft:
        return model.num_parameters()
    targets = values.lora_target_modules or ["q_proj", "v_proj"]  # peft's own for Qwen and Llama
    if isinstance(targets, str):
        targets = [targets]
    trained = 0
    for name, module in model.named_modules():
        chosen = name.rpartition(".")[2] in targets or (targets == ["all-linear"] and "lm_head" not in name)
        if isinstance(module, torch.nn.Linear) and chosen:
            trained += values.lora_r * (module.in_features + module.out_features)
    return trained


def mixed_precision(values):
    """bf16, fp16 or None: the type that a run's arithmetic is done in, as TRL decides it."""
    if values.bf16 or (values.bf16 is None and not values.fp16):
        return "bf16"
    return "fp16" if values.fp16 else None


def eight_bit(values):
    """Whether the optimizer keeps its moments in 8 bits."""
    return "8bit" in str(values.optim)


def checkpointing(values):
    """Whether activations are computed again in the backward pass, which TRL does unless told otherwise."""
    return bool(getattr(values, "activation_checkpointing", True))


def loaded_bytes(values):
    """Bytes of a weight of the type that the model is loaded in."""
    return 2 if str(values.dtype) in ("bfloat16", "float16") else 4


def trained_by_deepspeed(values, strategy):
    """Whether DeepSpeed keeps the weights in the type of the arithmetic, which it does not in float32."""
    return bool(strategy.deepspeed and mixed_precision(values))


def cost_of(values, strategy):
    """The Cost of one trained parameter, with AdamW's moments in the type that they have without 8 bits."""
    if trained_by_deepspeed(values, strategy):
        return COSTS["DeepSpeed"]
    if values.use_peft:
        return COSTS["adapters"]
    return COSTS["16 bits" if loaded_bytes(values) == 2 else "float32"]


def moment_bytes(values, model, strategy):
    """Bytes of AdamW's two moments of all trained parameters together.

    In 8 bits, transformers has the embedding's moments kept in float32. Neither an adapter nor DeepSpeed, which no
    longer knows which weights are the embedding, has that exception.
    """
    trained = trained_parameters(model, values)
    if not eight_bit(values):
        return trained * cost_of(values, strategy).moments
    if values.use_peft or trained_by_deepspeed(values, strategy):
        return trained * EIGHT_BIT_MOMENTS
    embedding = model.get_input_embeddings().weight.numel()
    return (trained - embedding) * EIGHT_BIT_MOMENTS + embedding * EMBEDDING_MOMENTS


def model_parts(values, model, strategy):
    """Bytes on a card of weights, gradients, optimizer and the reference model, as a dict, activations aside."""
    parameters, trained = model.num_parameters(), trained_parameters(model, values)
    cost = cost_of(values, strategy)
    parts = {
        "weights": trained * cost.weight,
        "gradients": trained * cost.gradient,
        "optimizer": moment_bytes(values, model, strategy) + trained * cost.float32_copy,
    }
    if values.use_peft:
        parts["weights"] += parameters * loaded_bytes(values)  # the frozen ones, beside the adapters
    for part, shards in strategy.shards.items():
        parts[part] //= shards
        if part in strategy.offload:
            parts[part] = 0
    if values.beta and not values.use_peft:  # with LoRA the reference is the model without its adapters
        element = 2 if trained_by_deepspeed(values, strategy) else loaded_bytes(values)
        parts["reference"] = parameters * element // strategy.shards["weights"]
    return parts


def activations(values, config, tokens):
    """Bytes that one forward and backward pass over `tokens` tokens keeps, from the shapes of a Llama-like layer.

    A layer keeps about 12 vectors of the hidden size and 5 of the intermediate size a token (its norms, projections,
    attention and gated MLP), twice that while it is gone through backwards. With checkpointing the layers keep their
    inputs alone, and one layer at a time the rest. The head holds logits, their softmax and its gradient in float32.
    """
    element = 2 if mixed_precision(values) else 4
    layer = tokens * (12 * config.hidden_size + 5 * config.intermediate_size) * element
    if checkpointing(values):
        kept = config.num_hidden_layers * tokens * config.hidden_size * 4 + 2 * layer
    else:
        kept = (config.num_hidden_layers + 1) * layer
    return kept + 3 * 4 * min(tokens, HEAD_TOKENS) * config.vocab_size


def cache(values, config, tokens):
    """Bytes of keys and values where transformers generates, which it does for all steps of a generation at once."""
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = config.num_key_value_heads * head_size
    steps_per_generation = values.steps_per_generation or values.gradient_accumulation_steps
    sequences = values.per_device_train_batch_size * steps_per_generation
    return sequences * tokens * config.num_hidden_layers * 2 * width * loaded_bytes(values)


def memory(values, model, strategy, tokens, card):
    """Bytes on a card as a dict: `parts`, and `peaks` of the update and of generation.

    model: on the meta device; tokens: of the longest prompt and completion together; card: bytes of a card, or None.
    """
    config = model.config.get_text_config()
    parts = model_parts(values, model, strategy)
    gradients = parts["gradients"]
    always = sum(parts.values()) - gradients + int(CONTEXT)
    parts["activations"] = activations(values, config, tokens * values.per_device_train_batch_size)
    parts["context"] = int(CONTEXT)
    peaks = {"update": always + gradients + parts["activations"], "generation": always}
    if not values.use_vllm:
        parts["cache"] = cache(values, config, tokens)
        peaks["generation"] += parts["cache"]
    elif values.vllm_mode == "colocate" and card:  # a server is on another card
        parts["vLLM"] = int(values.vllm_gpu_memory_utilization * card)
        peaks["generation"] += parts["vLLM"]
        if not values.vllm_enable_sleep_mode:
            peaks["update"] += parts["vLLM"]
    return {"parts": parts, "peaks": peaks}


def advice(values, strategy, phase):
    """The settings to change, cheapest first, where a card is too small for the update or for generation."""
    options = []
    if phase == "generation" and not values.use_vllm:
        options.append("a smaller --steps_per_generation")
    if phase == "generation" and values.use_vllm:
        options.append(f"--vllm_gpu_memory_utilization below {values.vllm_gpu_memory_utilization}")
    if phase == "update" and values.use_vllm and not values.vllm_enable_sleep_mode:
        options.append("--vllm_enable_sleep_mode true")
    if phase == "update" and not checkpointing(values):
        options.append("--activation_checkpointing true")
    if phase == "update" and values.per_device_train_batch_size > 1:
        options.append("a smaller --per_device_train_batch_size, with more --gradient_accumulation_steps")
    if values.beta and not values.use_peft:
        options.append("--beta 0 (no reference model)")
    moments_are_small = values.use_peft or eight_bit(values) or "optimizer" in strategy.offload
    if not moments_are_small and "FSDP" not in strategy.name:
        options.append("--optim adamw_bnb_8bit")
    if not values.use_peft:
        options.append("--use_peft true --lora_target_modules all-linear --learning_rate 1e-5")
    if strategy.shards["weights"] == 1:
        options.append("more GPUs with configs/accelerate/zero3.yaml")
    return ", or ".join(options)


def plan_lines(values, model, rows, longest, strategy, card):
    """The plan as a list of lines.

    values: every setting; model: on the meta device; rows: training problems, or None where their number is not known;
    longest: tokens of the longest prompt, 0 where it is not known; card: bytes of a card, or None.
    """
    lines = [
        steps_line(values, rows, strategy),
        model_line(values, model),
        machine_line(values, strategy),
    ]
    if not values.use_cpu:
        lines += memory_lines(values, model, longest, strategy, card)
    return lines


def steps_line(values, rows, strategy):
    """What a generation makes, and how many steps an epoch and the run have."""
    plan = schedule(values, rows, strategy.processes)
    plural = "s" if plan["span"] != 1 else ""
    line = (
        f"steps: {plan['completions']:,} completions of {plan['prompts']:,} prompts a generation, {plan['span']:g} "
        f"optimizer step{plural} on them; "
    )
    if rows is None:
        line += "the number of problems is not known yet, "
    else:
        line += f"{plan['steps_an_epoch']:,.0f} steps an epoch of {rows:,} problems, "
    if plan["steps"] is None:
        return f"{line}nor is that of the steps in {values.num_train_epochs:g} epochs"
    return f"{line}{plan['steps']:,} steps and {plan['completions_in_all']:,} completions in this run"


def model_line(values, model):
    """The model's size, what of it is trained, and in which types."""
    parameters, trained = model.num_parameters(), trained_parameters(model, values)
    share = "all trained"
    if trained != parameters:
        share = f"{trained:,} trained (LoRA of rank {values.lora_r})"
    return (
        f"model: {parameters:,} parameters, {share}, weights {values.dtype}, arithmetic "
        f"{mixed_precision(values) or 'float32'}, attention {values.attn_implementation or 'sdpa'}"
    )


def machine_line(values, strategy):
    """How the model is spread over the processes, and what generates."""
    over = f" over {strategy.processes} processes" if strategy.processes > 1 else ""
    if not values.use_vllm:
        generation = "transformers' own generation"
    elif values.vllm_mode == "server":
        url = values.vllm_server_base_url or f"http://{values.vllm_server_host}:{values.vllm_server_port}"
        generation = f"a vLLM server at {url}, awaited for {values.vllm_server_timeout:g} s"
    else:
        generation = f"vLLM in the same processes, tensor parallel {values.vllm_tensor_parallel_size}"
    return f"machine: {strategy.name}{over}; {generation}"


def memory_lines(values, model, longest, strategy, card):
    """The estimate of a card's memory, and what to change for each phase that the card is too small for."""
    estimate = memory(values, model, strategy, longest + values.max_completion_length, card)
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in estimate["parts"].items())
    peaks = ", ".join(f"{size / GIB:.1f} in {phase}" for phase, size in estimate["peaks"].items())
    has = f"of {card / GIB:.0f}" if card else "and no card here to compare with"
    without = "" if longest else " without the prompts, whose length is not known yet"
    lines = [f"memory a card, estimate in GiB{without}: {parts}: {peaks}, {has}"]
    for phase, size in estimate["peaks"].items():
        if card and size > card:
            lines.append(f"will not fit in {phase}: try {advice(values, strategy, phase)}")
    return lines
