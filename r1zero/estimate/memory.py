"""How many steps a run takes and how much memory of a card, worked out before any weight is loaded.

The memory of weights, gradients and optimizer follows from what each strategy keeps on a card, and that of a forward
and backward pass from what torch allocates in it (activations.py). No formula gives what CUDA, NCCL and a sleeping
vLLM take: these two numbers are assumed.
"""

from typing import NamedTuple

from r1zero import schedule
from r1zero.estimate import activations
from r1zero.schedule import ROWS

GIB, GB = 2**30, 10**9  # what memory is told in here, and what makers of cards tell it in
CONTEXT = 1.0 * GIB  # assumed: of CUDA, cuBLAS, NCCL and fragmentation
# Assumed: what vLLM keeps on the card while it sleeps. Its pool has weights, keys and values alone, so that its CUDA
# graphs and its NCCL buffers stay (vLLM's pull request 45623). Its own logs tell of graphs of 0.21 GiB for
# Llama-3.2-1B (11349) to 1.62 GiB for a Qwen3.5 with 51 sizes of batches (39559).
VLLM_ASLEEP = 1.0 * GIB
BUCKET = 500_000_000  # gradients that DeepSpeed exchanges at a time: reduce_bucket_size, its default
LIVE = 1_000_000_000  # weights that ZeRO-3 holds whole at a time: stage3_max_live_parameters, its default


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


def adapted_modules(model, values):
    """The linear layers of a model beside which LoRA has an adapter, as a list."""
    import torch  # here, as it takes a second

    targets = values.lora_target_modules or ["q_proj", "v_proj"]  # peft's own for Qwen and Llama
    if isinstance(targets, str):
        targets = [targets]
    modules = []
    for name, module in model.named_modules():
        chosen = name.rpartition(".")[2] in targets or (targets == ["all-linear"] and "lm_head" not in name)
        if isinstance(module, torch.nn.Linear) and chosen:
            modules.append(module)
    return modules


def trained_parameters(model, values):
    """How many parameters of a model (on any device) are trained: all, or those of the LoRA adapters."""
    if not values.use_peft:
        return model.num_parameters()
    trained = 0
    for module in adapted_modules(model, values):
        trained += values.lora_r * (module.in_features + module.out_features)
    return trained


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
    return bool(strategy.deepspeed and schedule.mixed_precision(values))


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


def embedding_parameters(model):
    """How many parameters the embedding and the head have: once where they are the same."""
    once = model.get_input_embeddings().weight.numel()
    return once if model.config.get_text_config().tie_word_embeddings else 2 * once


def buffers(values, model, strategy):
    """Bytes of the buffers in which gradients are exchanged.

    DDP has as many as gradients (accelerate leaves gradient_as_bucket_view off), DeepSpeed one of BUCKET gradients.
    """
    gradient = cost_of(values, strategy).gradient
    if strategy.deepspeed:
        return BUCKET * gradient
    return trained_parameters(model, values) * gradient if strategy.name == "DDP" else 0


def gathered(values, model, strategy):
    """Bytes of the weights that are whole on each card for a while, where every card keeps only a part of them."""
    if strategy.shards["weights"] == 1:
        return 0
    if strategy.deepspeed:
        return min(LIVE, model.num_parameters()) * stream_bytes(values, strategy)
    # FSDP2: embedding and head, the layer at work and the next one
    layers = 2 * layer_parameters(model)
    return (embedding_parameters(model) + layers) * loaded_bytes(values)


def layer_parameters(model):
    """How many parameters one decoder layer has, the last norm left out."""
    layers = model.config.get_text_config().num_hidden_layers
    return (model.num_parameters() - embedding_parameters(model)) // layers


def stream_bytes(values, strategy):
    """Bytes of a number that goes from layer to layer: it has the type of the weights."""
    return 2 if trained_by_deepspeed(values, strategy) else loaded_bytes(values)


def one_pass(values, model, strategy, sequences, tokens):
    """The activations.Pass over so many sequences of so many tokens, all at a time unless padding is trimmed."""
    stream = stream_bytes(values, strategy)
    return activations.Pass(
        config=model.config.get_text_config(),
        layer_parameters=layer_parameters(model),
        sequences=sequences,
        rows=ROWS if values.trim_padding else sequences,
        width=tokens,
        compute=2 if schedule.mixed_precision(values) else stream,
        stream=stream,
        autocast=bool(
            schedule.mixed_precision(values) and not strategy.deepspeed
        ),  # accelerate leaves DeepSpeed without it
        adapters=values.use_peft,
        checkpointing=checkpointing(values),
    )


def cache(values, model, strategy, tokens):
    """Bytes of keys and values where transformers generates, for all steps of a generation at once or an evaluation.

    ZeRO-3 gathers the whole model for it (TRL's ds3_gather_for_generation).
    """
    config = model.config.get_text_config()
    element = stream_bytes(values, strategy)
    width = config.num_key_value_heads * activations.head_size(config)
    whole = model.num_parameters() * element if is_zero3(strategy) else 0
    return max(sequences_generated(values)) * tokens * config.num_hidden_layers * 2 * width * element + whole


def sequences_generated(values):
    """How many sequences a process generates at a time: for training, and in an evaluation (ints, 0 without one)."""
    steps_per_generation = values.steps_per_generation or values.gradient_accumulation_steps
    evaluated = values.per_device_eval_batch_size if schedule.evaluates(values) else 0
    return values.per_device_train_batch_size * steps_per_generation, evaluated


def is_zero3(strategy):
    """Whether a machine.Strategy is DeepSpeed's ZeRO-3 over several processes."""
    return strategy.deepspeed and strategy.shards["weights"] > 1


def optimizer_step(values, model, strategy):
    """Bytes that DeepSpeed takes for a step: a card's part of the gradients, joined, and the same in float32."""
    if not trained_by_deepspeed(values, strategy) or "optimizer" in strategy.offload:
        return 0
    return (2 + 4) * trained_parameters(model, values) // strategy.shards["optimizer"]


def memory(values, model, strategy, tokens, card):
    """Bytes on a card as a dict: `parts`, and `peaks` of the update, of evaluation and of generation.

    model: on the meta device; tokens: of the longest prompt and completion together; card: bytes of a card, or None.
    The parts are not all there at once: each peak is that of the moment that takes most.
    """
    parts = model_parts(values, model, strategy)
    gradients = parts["gradients"]
    parts["context"] = int(CONTEXT)
    always = sum(parts.values()) - gradients
    if is_zero3(strategy):  # which keeps their place for good
        always, gradients = always + gradients, 0
    run = one_pass(values, model, strategy, values.per_device_train_batch_size, tokens)
    parts |= activations.update_parts(run)
    parts["buffers"] = buffers(values, model, strategy) + gathered(values, model, strategy)
    update = parts["buffers"] + max(activations.update_moments(run).values())
    peaks = {"update": always + gradients + max(update, optimizer_step(values, model, strategy))}
    if strategy.name == "DDP":  # DeepSpeed's buffers come and go
        always += parts["buffers"]
    if schedule.evaluates(values):
        run = one_pass(values, model, strategy, values.per_device_eval_batch_size, tokens)
        parts["evaluation"] = activations.evaluation(run) + gathered(values, model, strategy)
        peaks["evaluation"] = always + parts["evaluation"]
    peaks["generation"] = always
    if not values.use_vllm:
        parts["cache"] = cache(values, model, strategy, tokens)
        peaks["generation"] += parts["cache"]
    elif values.vllm_mode == "colocate":  # a server is on another card
        add_vllm(values, card, parts, peaks)
    return {"parts": {name: size for name, size in parts.items() if size}, "peaks": peaks}


def add_vllm(values, card, parts, peaks):
    """Adds to parts and peaks what vLLM takes beside the trainer: its share, or while it sleeps what it keeps."""
    share = int(values.vllm_gpu_memory_utilization * (card or 0))
    kept = share
    if values.vllm_enable_sleep_mode:
        kept = parts["vLLM asleep"] = int(VLLM_ASLEEP)
    parts["vLLM"] = share
    for phase in peaks:
        peaks[phase] += share if phase == "generation" else kept


def exact_copies(values, model, strategy):
    """Bytes of the machine's own memory, in each process, that hold a LoRA base exactly while vLLM is in use: lora.py.

    A base of 16 bits has them, of every matrix beside which there is an adapter.
    """
    pushed = values.use_peft and values.use_vllm
    if not pushed or is_zero3(strategy) or stream_bytes(values, strategy) == 4:
        return 0
    elements = 0
    for module in adapted_modules(model, values):
        for weight in module.parameters():
            elements += weight.numel()
    return 2 * elements


def advice(values, strategy, phase):
    """The settings to change, cheapest first, where a card is too small for the update or for generation."""
    options = []
    if phase == "generation" and not values.use_vllm:
        trained, evaluated = sequences_generated(values)
        if evaluated > trained:  # the larger of the two has the larger cache
            options.append(f"--per_device_eval_batch_size below {evaluated}")
        else:
            options.append("a smaller --steps_per_generation")
    if phase == "evaluation":
        at_a_time = values.per_device_eval_batch_size
        if values.trim_padding:
            at_a_time = min(at_a_time, ROWS)
        else:
            options.append("--trim_padding true")
        if at_a_time > 1:
            options.append(f"--per_device_eval_batch_size below {at_a_time}")
    if phase == "generation" and values.use_vllm:
        options.append(f"--vllm_gpu_memory_utilization below {values.vllm_gpu_memory_utilization}")
    if phase != "generation" and values.use_vllm and not values.vllm_enable_sleep_mode:
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
        options.append("--use_peft true --lora_target_modules all-linear --lora_dropout 0 --learning_rate 1e-5")
    if strategy.shards["weights"] == 1:
        options.append("more GPUs with configs/accelerate/zero3.yaml")
    return ", or ".join(options)
