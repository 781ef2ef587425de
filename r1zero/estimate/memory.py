"""Estimate the memory of a run part by part, before any weight is loaded.

Exact, from the model and the strategy: weights, gradients, optimizer, reference model, copies of weights, vLLM's
share. Upper bounds: a forward and backward pass, TRL's head and an evaluation (tests/test_estimate.py compares them
with what torch allocates). Assumed, as no formula gives them: CONTEXT and VLLM_ASLEEP.
"""

import re

from r1zero import schedule
from r1zero.schedule import ROWS

GIB = 2**30
CONTEXT = 1.0 * GIB  # assumed: CUDA, cuBLAS, NCCL and fragmentation
# Assumed: vLLM's sleep frees weights, keys and values, but neither CUDA graphs nor NCCL's buffers (its pull request
# 45623). Its own logs report graphs of 0.21 GiB for Llama-3.2-1B (11349) to 1.62 GiB for a Qwen3.5 (39559).
VLLM_ASLEEP = 1.0 * GIB
BUCKET = 500_000_000  # gradients that DeepSpeed exchanges at a time: its default reduce_bucket_size
LIVE = 1_000_000_000  # weights that ZeRO-3 holds whole at a time: its default stage3_max_live_parameters
# TRL computes logits in tiles: TOKEN_CHUNK_SIZE in trl/kernels/chunked_logprob.py, _CHUNKED_LOGPROB_CHUNK_SIZE in
# trl/trainer/utils.py. A tile has its whole width even if the vocabulary is smaller.
TILE_TOKENS, TILE_ENTRIES = 4096, 32768

# What a card does, one at a time
FORWARD, BACKWARD, STEP, EVALUATION, GENERATION = "forward", "backward", "step", "evaluation", "generation"
PASS, ALWAYS = (FORWARD, BACKWARD), (FORWARD, BACKWARD, STEP, EVALUATION, GENERATION)


def memory(values, model, strategy, tokens, card):
    """Return bytes on a card as a dict: `parts`, and `peaks` of the update, of evaluation and of generation.

    values: every setting; model: on the meta device; tokens: of the longest prompt and completion together; card:
    bytes of a card, or None.
    """
    parameters, trained = model.num_parameters(), trained_parameters(model, values)
    number, trained_number = weight_bytes(values, strategy), trained_weight_bytes(values, strategy)
    sharded = {
        "weights": trained * trained_number + (parameters * number if values.use_peft else 0),  # and the frozen base
        "gradients": trained * trained_number,
        "optimizer": optimizer_bytes(values, model, strategy),
    }
    for part, shards in strategy.shards.items():
        sharded[part] = 0 if part in strategy.offload else sharded[part] // shards
    # With LoRA the reference is the model without its adapters
    reference = parameters * number // strategy.shards["weights"] if values.beta and not values.use_peft else 0
    # DeepSpeed exchanges gradients through a bucket, and DDP through a copy of all: gradient_as_bucket_view is off
    buffers = BUCKET * trained_number if strategy.deepspeed else 0
    if strategy.name == "DDP":
        buffers = trained * trained_number
    # DeepSpeed joins a card's gradients for a step, and copies them to float32
    step = trained_by_deepspeed(values, strategy) and "optimizer" not in strategy.offload
    colocated = values.use_vllm and values.vllm_mode == "colocate"  # a vLLM server is on another card
    sleeps = colocated and values.vllm_enable_sleep_mode
    share = int(values.vllm_gpu_memory_utilization * (card or 0)) if colocated else 0
    zero3 = strategy.deepspeed and strategy.gathers_weights
    working = working_bytes(values, model, strategy, tokens)
    casting = (FORWARD,) if checkpointing(values) else PASS
    if not values.use_vllm and not values.use_peft:
        casting += (GENERATION,)

    table = [
        ("weights", sharded["weights"], ALWAYS),
        ("gradients", sharded["gradients"], ALWAYS if zero3 else (*PASS, STEP)),
        ("optimizer", sharded["optimizer"], ALWAYS),
        ("reference", reference, ALWAYS),
        ("context", int(CONTEXT), ALWAYS),
        ("activations", working["activations"], PASS),
        ("head", working["head"], PASS),
        ("head's gradient", working["head's gradient"], (BACKWARD,)),
        ("cast weights", working["cast weights"], casting),
        ("buffers", buffers, ALWAYS if strategy.name == "DDP" else PASS),
        ("gathered weights", gathered_bytes(model, strategy, number), (*PASS, EVALUATION)),
        ("optimizer step", 6 * trained // strategy.shards["optimizer"] if step else 0, (STEP,)),
        ("evaluation", working["evaluation"], (EVALUATION,)),
        ("cache", 0 if values.use_vllm else cache_bytes(values, model, strategy, tokens), (GENERATION,)),
        ("vLLM asleep", int(VLLM_ASLEEP) if sleeps else 0, (*PASS, STEP, EVALUATION)),
        ("vLLM", share, (GENERATION,) if sleeps else ALWAYS),
    ]
    total = {phase: sum(size for _, size, phases in table if phase in phases) for phase in ALWAYS}
    peaks = {"update": max(total[FORWARD], total[BACKWARD], total[STEP])}
    if schedule.evaluates(values):
        peaks["evaluation"] = total[EVALUATION]
    peaks["generation"] = total[GENERATION]
    return {"parts": {part: size for part, size, _ in table if size}, "peaks": peaks}


def trained_parameters(model, values):
    """Return how many parameters of a model (on any device) are trained: all, or those of the LoRA adapters."""
    if not values.use_peft:
        return model.num_parameters()
    import torch  # here, as it takes a second

    targets = values.lora_target_modules or ["q_proj", "v_proj"]  # PEFT's own for Qwen and Llama

    def is_chosen(name):
        if targets in ("all-linear", ["all-linear"]):
            return "lm_head" not in name
        if isinstance(targets, str):
            return re.fullmatch(targets, name)
        return any(f".{name}".endswith(f".{target}") for target in targets)

    trained = 0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and is_chosen(name):
            trained += values.lora_r * (module.in_features + module.out_features)
    return trained


def trained_by_deepspeed(values, strategy):
    """Return whether DeepSpeed keeps the weights in 16 bits, as it does unless the arithmetic is float32."""
    return bool(strategy.deepspeed and schedule.mixed_precision(values))


def weight_bytes(values, strategy):
    """Return the bytes of a number of the model's weights, and of what goes from layer to layer."""
    return 2 if trained_by_deepspeed(values, strategy) or str(values.dtype) in ("bfloat16", "float16") else 4


def trained_weight_bytes(values, strategy):
    """Return the bytes of a trained weight and of its gradient. PEFT makes adapters in float32."""
    if values.use_peft:
        return 2 if trained_by_deepspeed(values, strategy) else 4
    return weight_bytes(values, strategy)


def optimizer_bytes(values, model, strategy):
    """Return the bytes of AdamW's two moments, and of DeepSpeed's float32 copy of the weights.

    An 8-bit optimizer leaves the embedding's moments in float32 (transformers), except with adapters or DeepSpeed.
    """
    trained, by_deepspeed = trained_parameters(model, values), trained_by_deepspeed(values, strategy)
    if "8bit" in str(values.optim):
        embedding = 0 if values.use_peft or by_deepspeed else model.get_input_embeddings().weight.numel()
        moments = 2 * (trained - embedding) + 8 * embedding
    else:
        moments = trained * (8 if by_deepspeed else 2 * trained_weight_bytes(values, strategy))
    return moments + (4 * trained if by_deepspeed else 0)


def gathered_bytes(model, strategy, number):
    """Return the bytes of sharded weights, of `number` bytes each, that a pass makes whole for a while."""
    if not strategy.gathers_weights:
        return 0
    if strategy.deepspeed:
        return min(LIVE, model.num_parameters()) * number
    return (embedding_parameters(model) + 2 * layer_parameters(model)) * number  # FSDP2: this layer and the next one


def embedding_parameters(model):
    """Return how many parameters embedding and head have; tied ones count once."""
    once = model.get_input_embeddings().weight.numel()
    return once if model.config.get_text_config().tie_word_embeddings else 2 * once


def layer_parameters(model):
    """Return how many parameters one decoder layer has."""
    return (model.num_parameters() - embedding_parameters(model)) // model.config.get_text_config().num_hidden_layers


def head_size(config):
    """Return the width of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def checkpointing(values):
    """Return whether the backward pass computes activations again; TRL does so by default."""
    return bool(getattr(values, "activation_checkpointing", True))


def rows_of_a_pass(values, strategy, rows, tokens):
    """Return how many of so many sequences of `tokens` one forward pass takes at most."""
    if not values.trim_padding:
        return rows
    return min(rows, ROWS if strategy.gathers_weights else max(1, values.tokens_per_pass // tokens))


def working_bytes(values, model, strategy, tokens):
    """Return upper bounds, as a dict of part to bytes, for passes over micro-batches of sequences of `tokens`.

    The layers are Qwen2's, Qwen3's and Llama's in transformers with sdpa attention and a mask, the head is TRL's.
    """
    config = model.config.get_text_config()
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    stream = weight_bytes(values, strategy)  # of a number that goes from layer to layer
    compute = 2 if schedule.mixed_precision(values) else stream  # of a number in matrix products
    rows, scored = values.per_device_train_batch_size, values.per_device_eval_batch_size  # sequences
    at_once, scored_at_once = (rows_of_a_pass(values, strategy, count, tokens) for count in (rows, scored))

    # Bytes a token that a layer keeps for its backward pass: two norms in float32 and their results, the inputs of its
    # matrices (one copy each under autocast or beside adapters), the mask as numbers, query, key, value and result for
    # all heads, and gate, activation, up and product of the MLP
    attention = config.num_attention_heads * head_size(config)
    layer = hidden * (8 + 2 * stream + 6 * compute) + compute * (tokens + 4 * attention + 4 * inner)
    if config.model_type == "qwen3":  # it has a norm for query and key too
        layer += (4 + compute) * (attention + config.num_key_value_heads * head_size(config))
    moving = inner * (2 * compute + 4) + hidden * (stream + compute)  # gradients inside a layer
    kept = tokens + 2 * stream * hidden + layers * (stream * hidden if checkpointing(values) else layer)
    activations = tokens * (rows * kept + at_once * (layer + moving))
    if rows > at_once and not values.use_peft:  # autograd first sums the gradients of all sub-batches
        activations += stream * layers * layer_parameters(model)

    # autocast caches 16-bit copies of float32 weights until the forward pass ends. It caches none of frozen weights,
    # but without checkpointing autograd keeps those too; with it, a layer that is computed again has its own copies.
    cast = compute * layer_parameters(model) if stream > compute else 0
    activations += cast
    every_cast = 0 if values.use_peft and checkpointing(values) else layers * cast

    # A tile of logits with the head's weights for it, and the gradient of a trained head: a float32 sum, and beside it
    # a copy in the weights' type, or the gradient of the tied embedding
    tile_weights = compute * min(config.vocab_size, TILE_ENTRIES) * hidden
    head = compute * min(at_once * tokens, TILE_TOKENS) * TILE_ENTRIES + tile_weights + 4 * at_once * tokens * hidden
    twice = config.tie_word_embeddings or stream < 4
    gradient = 0 if values.use_peft else (4 + stream if twice else 4) * config.vocab_size * hidden

    # Scoring holds gate, up, product and PEFT's cast; embeddings, stream, a norm and PEFT's casts; a row of the mask
    held = 4 * compute * inner + (4 * stream + 2 * compute) * hidden + tokens
    tile = compute * min(scored_at_once * tokens, TILE_TOKENS) * TILE_ENTRIES + tile_weights
    evaluation = scored_at_once * tokens * held + tile + (cast if values.use_peft else layers * cast)
    return {
        "activations": activations,
        "head": head,
        "head's gradient": gradient,
        "cast weights": every_cast,
        "evaluation": evaluation if schedule.evaluates(values) else 0,
    }


def cache_bytes(values, model, strategy, tokens):
    """Return the bytes of keys and values if transformers generates. ZeRO-3 gathers the whole model for it."""
    config, number = model.config.get_text_config(), weight_bytes(values, strategy)
    a_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head_size(config) * number
    whole = model.num_parameters() * number if strategy.deepspeed and strategy.gathers_weights else 0
    sequences = values.per_device_train_batch_size * schedule.micro_batches(values)
    if schedule.evaluates(values):
        sequences = max(sequences, values.per_device_eval_batch_size)
    return sequences * tokens * a_token + whole
