"""What a run's settings mean for its course: generations and optimizer steps, evaluations, the type of arithmetic."""

import math

ROWS = 16  # sequences of one forward pass, at most, if no padding is computed (training/trainer.py)


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


def evaluates(values):
    """Whether a run evaluates on its held-out problems."""
    return str(values.eval_strategy) != "no"


def mixed_precision(values):
    """bf16, fp16 or None: the type that a run's arithmetic is done in, as TRL decides it."""
    if values.bf16 or (values.bf16 is None and not values.fp16):
        return "bf16"
    return "fp16" if values.fp16 else None
