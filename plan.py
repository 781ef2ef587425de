"""What a run will do and take, worked out before any weight is loaded: `--dry_run` prints it and stops.

Memory follows what each strategy keeps on a card. Trained weights and their gradients have the type that `dtype` says,
float32 by default, and AdamW's two moments have it too, or 8 bits. DeepSpeed keeps weights and gradients in the type
of the arithmetic, and a float32 copy of the weights with the optimizer. Activations are what no formula gives exactly.
"""

import math
import os
from dataclasses import dataclass, field

import torch

GIB = 2**30
CONTEXT = 1.0 * GIB  # of CUDA, NCCL and fragmentation
HEAD_TOKENS = 1024  # tokens whose logits TRL's chunked head holds at a time


@dataclass
class Strategy:
    """How a model is spread over the processes, as accelerate's launcher says it through the environment."""

    name: str = "one process"
    processes: int = 1
    shards: dict = field(default_factory=lambda: {"weights": 1, "gradients": 1, "optimizer": 1})
    deepspeed: bool = False
    offload: tuple = ()


def read_strategy(environment=os.environ):
    """The Strategy of this process, from the variables that `accelerate launch` sets."""
    processes = int(environment.get("WORLD_SIZE", 1))
    whole, parts = {"weights": 1, "gradients": 1, "optimizer": 1}, {}
    if environment.get("ACCELERATE_USE_DEEPSPEED") == "true":
        stage = int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 2))
        parts = {1: ("optimizer",), 2: ("optimizer", "gradients"), 3: ("optimizer", "gradients", "weights")}.get(
            stage, ()
        )
        offload = tuple(
            part
            for part, name in (("optimizer", "OPTIMIZER"), ("weights", "PARAM"))
            if environment.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{name}_DEVICE", "none") != "none"
        )
        name = f"DeepSpeed ZeRO-{stage}" + (f" with {' and '.join(offload)} on the CPU" if offload else "")
        return Strategy(name, processes, whole | dict.fromkeys(parts, processes), True, offload)
    if environment.get("ACCELERATE_USE_FSDP") == "true":
        return Strategy(f"FSDP{environment.get('FSDP_VERSION', '1')}", processes, dict.fromkeys(whole, processes))
    return Strategy("DDP" if processes > 1 else "one process", processes, whole)


def span(values):
    """Optimizer steps that one generation serves. values: every setting, or TRL's GRPOConfig."""
    steps_per_generation = values.steps_per_generation or values.gradient_accumulation_steps
    return steps_per_generation * values.num_iterations / values.gradient_accumulation_steps


def schedule(values, rows, processes):
    """Prompts, completions and steps of a run, as a dict. rows: training problems; values: every setting."""
    steps_per_generation = values.steps_per_generation or values.gradient_accumulation_steps
    completions = values.generation_batch_size or values.per_device_train_batch_size * processes * steps_per_generation
    prompts = max(1, completions // values.num_generations)
    steps_an_epoch = rows // prompts * span(values)
    steps = values.max_steps if values.max_steps > 0 else math.ceil(values.num_train_epochs * steps_an_epoch)
    return {
        "prompts": prompts,
        "completions": completions,
        "span": span(values),
        "steps_an_epoch": steps_an_epoch,
        "steps": steps,
        "completions_in_all": math.ceil(steps / span(values)) * completions,
    }


def trained_parameters(model, values):
    """How many parameters of a model (on any device) are trained: all, or those of the LoRA adapters."""
    if not values.use_peft:
        return model.num_parameters()
    targets = values.lora_target_modules or ["q_proj", "v_proj"]  # peft's own for Qwen and Llama
    targets = [targets] if isinstance(targets, str) else targets
    trained = 0
    for name, module in model.named_modules():
        chosen = name.rpartition(".")[2] in targets or (targets == ["all-linear"] and "lm_head" not in name)
        if isinstance(module, torch.nn.Linear) and chosen:
            trained += values.lora_r * (module.in_features + module.out_features)
    return trained


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


def mixed_precision(values):
    """bf16, fp16 or None: the type that a run's arithmetic is done in, as TRL decides it."""
    if values.bf16 or (values.bf16 is None and not values.fp16):
        return "bf16"
    return "fp16" if values.fp16 else None


def eight_bit(values):
    return "8bit" in str(values.optim)


def checkpointing(values):
    return bool(getattr(values, "activation_checkpointing", True))


def memory(values, model, strategy, tokens, card):
    """Bytes on a card as a dict: its parts, and the peaks of the update and of generation.

    model: on the meta device; tokens: of the longest prompt and completion together; card: bytes of a card, or None.
    """
    config, parameters, trained = (
        model.config.get_text_config(),
        model.num_parameters(),
        trained_parameters(model, values),
    )
    element = 2 if str(values.dtype) in ("bfloat16", "float16") else 4
    engine = strategy.deepspeed and mixed_precision(values)
    frozen = parameters if values.use_peft else 0
    of_trained = 2 if engine else 4 if values.use_peft else element  # adapters are float32
    moments = trained * (8 if engine else 2 * of_trained)
    if eight_bit(values):
        # transformers leaves the embedding's in float32; DeepSpeed no longer knows which weights are the embedding
        embedding = 0 if engine or values.use_peft else model.get_input_embeddings().weight.numel()
        moments = 2 * (trained - embedding) + 8 * embedding
    parts = {
        "weights": frozen * element + trained * of_trained,
        "gradients": trained * of_trained,
        "optimizer": moments + trained * (4 if engine else 0),
    }
    for part, shards in strategy.shards.items():
        parts[part] = 0 if part in strategy.offload else parts[part] // shards
    if values.beta and not values.use_peft:
        parts["reference"] = parameters * (2 if engine else element) // strategy.shards["weights"]
    parts["activations"] = activations(values, config, tokens * values.per_device_train_batch_size)
    parts["context"] = int(CONTEXT)
    standing = sum(parts[part] for part in parts if part not in ("gradients", "activations"))
    peaks = {"update": standing + parts["gradients"] + parts["activations"], "generation": standing}
    if values.use_vllm and values.vllm_mode == "colocate" and card:
        parts["vLLM"] = int(values.vllm_gpu_memory_utilization * card)
        peaks["generation"] += parts["vLLM"]
        if not values.vllm_enable_sleep_mode:
            peaks["update"] += parts["vLLM"]
    elif not values.use_vllm:
        # transformers generates for all steps of a generation at once: keys and values of each, of the head's size
        width = config.num_key_value_heads * (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        sequences = values.per_device_train_batch_size * (
            values.steps_per_generation or values.gradient_accumulation_steps
        )
        parts["cache"] = sequences * tokens * config.num_hidden_layers * 2 * width * element
        peaks["generation"] += parts["cache"]
    return {"parts": parts, "peaks": peaks}


def advice(values, strategy, phase):
    """The settings to change, cheapest first, where a card is too small for the update or for generation."""
    options = []
    if phase == "generation" and not values.use_vllm:
        options.append("a smaller --steps_per_generation")
    elif phase == "generation":
        options.append(f"--vllm_gpu_memory_utilization below {values.vllm_gpu_memory_utilization}")
    elif values.use_vllm and not values.vllm_enable_sleep_mode:
        options.append("--vllm_enable_sleep_mode true")
    if phase == "update":
        if not checkpointing(values):
            options.append("--activation_checkpointing true")
        if values.per_device_train_batch_size > 1:
            options.append("a smaller --per_device_train_batch_size, with more --gradient_accumulation_steps")
    if values.beta and not values.use_peft:
        options.append("--beta 0 (no reference model)")
    if not (values.use_peft or eight_bit(values) or "optimizer" in strategy.offload or "FSDP" in strategy.name):
        options.append("--optim adamw_bnb_8bit")
    if not values.use_peft:
        options.append("--use_peft true --lora_target_modules all-linear --learning_rate 1e-5")
    if strategy.shards["weights"] == 1:
        options.append("more GPUs with configs/accelerate/zero3.yaml")
    return ", or ".join(options)


def describe(values, model, rows, longest, strategy, card):
    """The plan as a list of lines. rows: training problems; longest: tokens of a prompt; card: bytes, or None."""
    plan = schedule(values, rows, strategy.processes)
    parameters, trained = model.num_parameters(), trained_parameters(model, values)
    over = f" over {strategy.processes} processes" if strategy.processes > 1 else ""
    share = "all trained" if trained == parameters else f"{trained:,} trained (LoRA of rank {values.lora_r})"
    if not values.use_vllm:
        generation = "transformers' own generation"
    elif values.vllm_mode == "server":
        url = values.vllm_server_base_url or f"http://{values.vllm_server_host}:{values.vllm_server_port}"
        generation = f"a vLLM server at {url}, awaited for {values.vllm_server_timeout:g} s"
    else:
        generation = f"vLLM in the same processes, tensor parallel {values.vllm_tensor_parallel_size}"
    lines = [
        f"steps: {plan['completions']:,} completions of {plan['prompts']:,} prompts a generation, {plan['span']:g} "
        f"optimizer step{'s' * (plan['span'] != 1)} on them; {plan['steps_an_epoch']:,.0f} steps an epoch of {rows:,} "
        f"problems, {plan['steps']:,} steps and {plan['completions_in_all']:,} completions in this run",
        f"model: {parameters:,} parameters, {share}, weights {values.dtype}, arithmetic "
        f"{mixed_precision(values) or 'float32'}, attention {values.attn_implementation or 'sdpa'}",
        f"machine: {strategy.name}{over}; {generation}",
    ]
    if values.use_cpu:
        return lines
    estimate = memory(values, model, strategy, longest + values.max_completion_length, card)
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in estimate["parts"].items())
    peaks = ", ".join(f"{size / GIB:.1f} in {phase}" for phase, size in estimate["peaks"].items())
    has = f"of {card / GIB:.0f}" if card else "and no card here to compare with"
    lines.append(f"memory a card, estimate in GiB: {parts}: {peaks}, {has}")
    for phase, size in estimate["peaks"].items():
        if card and size > card:
            lines.append(f"will not fit in {phase}: try {advice(values, strategy, phase)}")
    return lines
