"""Say in words what a run will take: steps, model, machine, memory and disk. `--dry_run` ends with these lines."""

import math
from dataclasses import dataclass

from r1zero import schedule
from r1zero.estimate import hours, memory
from r1zero.estimate.memory import GIB
from r1zero.schedule import ROWS

HELPS = {  # what to try, cheapest first, if a card is too small for a phase of memory.memory()'s `peaks`
    "update": "a smaller --per_device_train_batch_size, --beta 0, --optim adamw_bnb_8bit, LoRA, or more GPUs",
    "evaluation": "a smaller --tokens_per_pass, or a smaller --per_device_eval_batch_size",
    "generation": "a lower --vllm_gpu_memory_utilization; without vLLM a smaller --per_device_eval_batch_size or "
    "--steps_per_generation",
}


@dataclass
class Plan:
    """What a run will take.

    lines: what to print (list[str]); peaks: bytes on a card (dict, {} on the CPU); fits: whether a card has them.
    """

    lines: list
    peaks: dict
    fits: bool


def make_plan(values, model, rows, longest, strategy, card):
    """Return the Plan of a run.

    values: every setting; model: on the meta device; rows: training problems, None if unknown; longest: tokens of the
    longest prompt, 0 if unknown; card: bytes of a card, or None.
    """
    lines = [
        steps_line(values, rows, strategy),
        model_line(values, model),
        machine_line(values, strategy),
    ]
    if values.trim_padding and strategy.gathers_weights:
        lines.append(
            f"passes: {ROWS} completions each, with those without a signal, as {strategy.name} gathers weights in each"
        )
    peaks, too_large = {}, []
    if not values.use_cpu:
        estimate = memory.memory(values, model, strategy, longest + values.max_completion_length, card)
        peaks = estimate["peaks"]
        too_large = [phase for phase, size in peaks.items() if card and size > card]
        lines.append(memory_line(estimate, longest, card))
        lines += [f"will not fit in {phase}: try {HELPS[phase]} (docs/recipes.md)" for phase in too_large]
    copies, needed = disk(values, model.num_parameters(), rows, strategy)
    if needed:
        lines.append(f"disk: {needed / 1e9:,.2f} GB for {copies} at once and the final model")
    return Plan(lines, peaks, fits=not too_large)


def steps_line(values, rows, strategy):
    """Return the line on a generation and on the steps of an epoch and of the run."""
    plan = schedule.schedule(values, rows, strategy.processes)
    plural = "s" if plan["span"] != 1 else ""
    line = (
        f"steps: {plan['completions']:,} completions of {plan['prompts']:,} prompts a generation, {plan['span']:g} "
        f"optimizer step{plural} on them; "
    )
    if rows is None:
        line += "the number of problems is not known yet, "
    else:
        line += f"{plan['steps_an_epoch']:,} steps an epoch of {rows:,} problems, "
    if plan["steps"] is None:
        return f"{line}nor is that of the steps in {values.num_train_epochs:g} epochs"
    return f"{line}{plan['steps']:,} steps and {plan['completions_in_all']:,} completions in this run"


def model_line(values, model):
    """Return the line on the model's size, its trained share and its types."""
    parameters, trained = model.num_parameters(), memory.trained_parameters(model, values)
    share = "all trained"
    if trained != parameters:
        share = f"{trained:,} trained (LoRA of rank {values.lora_r})"
    return (
        f"model: {parameters:,} parameters, {share}, weights {values.dtype}, arithmetic "
        f"{schedule.mixed_precision(values) or 'float32'}, attention {values.attn_implementation or 'sdpa'}"
    )


def machine_line(values, strategy):
    """Return the line on the processes that share the model, and on what generates."""
    over = f" over {strategy.processes} processes" if strategy.processes > 1 else ""
    if not values.use_vllm:
        generation = "transformers' own generation"
    elif values.vllm_mode == "server":
        url = values.vllm_server_base_url or f"http://{values.vllm_server_host}:{values.vllm_server_port}"
        generation = f"a vLLM server at {url}, awaited for {values.vllm_server_timeout:g} s"
    else:
        generation = f"vLLM in the same processes, tensor parallel {values.vllm_tensor_parallel_size}"
    return f"machine: {strategy.name}{over}; {generation}"


def memory_line(estimate, longest, card):
    """Return the line on a card's memory. estimate: of memory.memory(); longest, card: as for make_plan."""
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in estimate["parts"].items())
    peaks = ", ".join(f"{size / GIB:.1f} in {phase}" for phase, size in estimate["peaks"].items())
    has = f"of {card / GIB:.1f}" if card else "and no card here to compare with"
    without = "" if longest else " without the prompts, whose length is not known yet"
    return f"memory a card, estimate in GiB{without}: {parts}; at most {peaks}, {has}"


def time_line(able, values, model, rows, held_out, longest, strategy):
    """Return the line on the least time and price of the run. The arguments are those of hours.least_hours."""
    least, (prompt, completion) = hours.least_hours(able, values, model, rows, held_out, longest, strategy)
    if least is None:
        return "time: not known, as the number of steps is not; --max_steps gives one"
    time = f"{60 * least:,.1f} minutes" if least < 1 else f"{least:,.1f} hours"
    if values.price_per_hour:
        time += f", and a cost of {least * values.price_per_hour:,.2f} at {values.price_per_hour:g} an hour"
    rate = f"{able['operations'] / 1e12:,.3g} TFLOPS"
    source = f"{rate} measured here"
    if math.isfinite(able["bytes"]):
        source = f"a card's peak of {rate} and {able['bytes'] / 1e9:,.0f} GB/s"
    prompts, without = f" and prompts {prompt:,}", ""
    if not longest:
        reason = "the first run makes the data" if rows is None and values.prepare else "their length is not known"
        prompts, without = "", f" without the prompts ({reason})"
    return (
        f"time: at least {time}{without}, if completions have {completion:,} tokens{prompts}, a quarter of the most, "
        f"and every group has a signal; a floor, from {source}: public runs took several times as long"
    )


def checkpoint_size(parameters, strategy):
    """Return the bytes that a checkpoint of a whole model takes, without the tied head that some strategies write.

    parameters: int; strategy: a machine.Strategy.
    """
    each = 4 + 8  # the weights and AdamW's two moments, in float32
    if strategy.gathers_weights:
        each += 4  # ZeRO-3's second copy of the weights, beside the moments, or FSDP's in one file
    elif strategy.deepspeed:
        each += 4 + 4  # that copy, and the weights it computes with
    return each * parameters


def disk(values, parameters, rows, strategy, there=0):
    """Return the disk space that a run's checkpoints and final model take: words such as "3 checkpoints", and bytes.

    parameters: of the model; rows: training problems, or None; there: checkpoints that exist already. The bytes are 0
    if the run saves adapters alone, or no checkpoints.
    """
    if values.use_peft or values.save_strategy == "no":
        return "", 0
    steps = schedule.schedule(values, rows, strategy.processes)["steps"] or 1
    copies = math.ceil(values.num_train_epochs)
    if values.save_strategy == "steps":
        copies = math.ceil(steps / (values.save_steps if values.save_steps >= 1 else values.save_steps * steps))
    if values.save_total_limit:  # Trainer deletes the oldest one after it has written the newest
        copies = min(copies, values.save_total_limit + 1)
    copies = max(1, copies - there)
    return f"{copies} checkpoint{'s' * (copies > 1)}", checkpoint_size(parameters, strategy) * copies + 4 * parameters
