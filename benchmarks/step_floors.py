"""What the parts of a step have to compute and to read at least, and how fast this machine does either.

The floor of a part is the least time that it can take: its operations over the rate at which the machine multiplies
matrices, or its bytes over the bandwidth of the memory, whichever takes longer. The bandwidth is that of the memory
and not of the caches before it, so that what fits into those, as the tiny model does, can be faster than a floor of
bytes.
"""

import time
from dataclasses import dataclass

import torch

from r1zero import schedule
from r1zero.estimate import activations, memory

SECONDS = 0.5  # that each measurement goes on


def fastest(function):
    """The seconds of the fastest of many calls. Short ones are not interrupted, also where others use the machine."""
    function()
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        before = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - before)
    return best


def multiplication_rate(rows, inner, columns, dtype, device):
    """Operations a second of the product of two matrices, (rows, inner) and (inner, columns)."""
    left = torch.randn(rows, inner, dtype=dtype, device=device)
    right = torch.randn(inner, columns, dtype=dtype, device=device)
    result = torch.empty(rows, columns, dtype=dtype, device=device)
    return 2 * rows * inner * columns / fastest(lambda: torch.mm(left, right, out=result))


def copied(numbers, device):
    """Bytes a second, read and written together, of the copy of so many float32 numbers."""
    source = torch.ones(numbers, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / fastest(lambda: target.copy_(source))


def measure_machine(config, dtype):
    """What this machine can do, as a dict: operations and bytes a second.

    `bandwidth` is that of a large copy, what is read and what is written together; `large_rate` is that of a product
    of large matrices, `own_rate` that of one of the model's widths. config: the model's; dtype: of the run's matrices.
    """
    cuda = torch.cuda.is_available()
    device, size, numbers = ("cuda", 8192, 2**28) if cuda else ("cpu", 512, 2**26)  # 1 GiB, 256 MiB
    found = {
        "bandwidth": copied(numbers, device),
        "large_rate": multiplication_rate(size, size, size, dtype, device),
        "own_rate": multiplication_rate(4096, config.hidden_size, config.intermediate_size, dtype, device),
    }
    if cuda:
        torch.cuda.empty_cache()  # what stays would count as the run's
    return found


@dataclass
class Model:
    """What of a model and its settings the floors follow from. Parameters are numbers of them."""

    body: int  # parameters without the embedding and the head, adapters included
    head: int
    trained: int
    all_trained: bool  # False with LoRA
    attention: int  # operations of a forward pass a token and a token that it attends to
    cached: int  # numbers that the keys and values of a token have
    element: int  # bytes of a number of the arithmetic
    trained_element: int  # bytes of a trained weight, as AdamW has it
    loaded_element: int  # bytes of a weight of the model that is trained


def describe(model, values):
    """A Model. model: without LoRA, on any device; values: every setting."""
    config = model.config.get_text_config()
    parameters = model.num_parameters()
    trained = memory.trained_parameters(model, values)
    head_width = activations.head_size(config)
    body = parameters - memory.embedding_parameters(model)
    if values.use_peft:
        body += trained
    return Model(
        body=body,
        head=config.hidden_size * config.vocab_size,
        trained=trained,
        all_trained=not values.use_peft,
        # Two products, q x k and weights x v, of two operations a number
        attention=4 * config.num_hidden_layers * config.num_attention_heads * head_width,
        cached=2 * config.num_hidden_layers * config.num_key_value_heads * head_width,
        element=2 if schedule.mixed_precision(values) else memory.loaded_bytes(values),
        trained_element=4 if values.use_peft else memory.loaded_bytes(values),
        loaded_element=memory.loaded_bytes(values),
    )


def forward_operations(model, lengths, scored):
    """Operations of a forward pass over real tokens: 2 a parameter and token, and attention to what stands before.

    lengths: (B,) float64, tokens of prompt and completion; scored: (B,), those that the head has to be computed for.
    """
    pairs = (lengths * (lengths + 1) / 2).sum()  # of a token and one that it attends to
    products = 2 * (model.body * lengths.sum() + model.head * scored.sum())
    return float(products + model.attention * pairs)


def backward_share(model):
    """Operations of a backward pass in those of its forward pass: LoRA's frozen weights have no gradient."""
    return 2 if model.all_trained else 1


def decoding_bytes(model, lengths, scored):
    """Bytes that decoding has to read, where one batch has all completions.

    All weights are read for each token of the longest completion; the keys and values of all tokens before it for
    each token of each completion.
    """
    prompts = lengths - scored
    weights = (model.body + model.head) * model.element * float(scored.max())
    cached = (scored * prompts + scored * (scored - 1) / 2).sum() * model.cached * model.element
    return weights + float(cached)


def optimizer_bytes(model, values):
    """Bytes that AdamW has to read and write in a step: weight and both moments twice, the gradient once."""
    if not str(values.optim).startswith("adamw_torch"):
        return None
    return 7 * model.trained * model.trained_element


def sync_bytes(model):
    """Bytes of a push of the weights: each is read as it is trained, and written as the engine has it."""
    return (model.body + model.head) * (model.loaded_element + model.element)


def work(model, values, window):
    """What the parts of a step have to do at least: a dict of (operations, bytes), of the parts that have a floor.

    window: a step_clock.Window that is closed.
    """
    found = {}
    lengths, scored = window.rows("forward")
    forward = forward_operations(model, lengths, scored)
    completions = len(lengths) // values.num_iterations  # each goes through as many forward passes
    lengths, scored = lengths[:completions], scored[:completions]
    found["generation"] = (forward_operations(model, lengths, scored), decoding_bytes(model, lengths, scored))
    if values.use_vllm:
        found["weight sync"] = (0, sync_bytes(model))
    if "scoring" in window.lengths:
        found["scoring"] = (forward_operations(model, *window.rows("scoring")), 0)
    found["forward"] = (forward, 0)
    found["backward"] = (backward_share(model) * forward, 0)
    moved = optimizer_bytes(model, values)
    if moved is not None:
        found["optimizer"] = (0, window.optimizer_steps * moved)
    return found
