"""Work out generations, optimizer steps, evaluations and the arithmetic's type from a run's settings."""

import math

ROWS = 16  # completions of one forward pass, if all ranks must run the same number of passes (training/trainer.py)


def micro_batches(values):
    """Return the micro-batches of one generation on a process (int). values: every setting, or TRL's GRPOConfig."""
    return values.steps_per_generation or values.gradient_accumulation_steps


def span(values):
    """Return the optimizer steps that one generation serves. values: every setting, or TRL's GRPOConfig."""
    return micro_batches(values) * values.num_iterations / values.gradient_accumulation_steps


def completions(values, processes):
    """Return the completions of one generation on all processes (int)."""
    return values.generation_batch_size or values.per_device_train_batch_size * processes * micro_batches(values)


def generations(values, step, an_epoch=None):
    """Return the generations (int) up to an optimizer step.

    an_epoch: micro-batches of an epoch on a process, as Trainer accumulates none beyond its end; None if not known.
    """
    size = values.gradient_accumulation_steps
    done = step * size
    if an_epoch:
        epochs, steps = divmod(step, math.ceil(an_epoch / size))
        done = epochs * an_epoch + steps * size
    return math.ceil(done / (micro_batches(values) * values.num_iterations))


def schedule(values, rows, processes):
    """Return the prompts, completions and steps of a run as a dict.

    values: every setting; rows: training problems, or None if not known. Then the steps of an epoch are None, and so
    are those of the run unless `max_steps` gives them.
    """
    a_generation = completions(values, processes)
    prompts = max(1, a_generation // values.num_generations)
    an_epoch, steps_an_epoch, steps, completions_in_all = None, None, None, None
    if rows is not None:
        an_epoch = rows // prompts * micro_batches(values) * values.num_iterations
        steps_an_epoch = math.ceil(an_epoch / values.gradient_accumulation_steps)  # the last may accumulate fewer
        steps = math.ceil(values.num_train_epochs * steps_an_epoch)
    if values.max_steps > 0:
        steps = values.max_steps
    if steps is not None:
        completions_in_all = generations(values, steps, an_epoch) * a_generation
    return {
        "prompts": prompts,
        "completions": a_generation,
        "span": span(values),
        "steps_an_epoch": steps_an_epoch,
        "steps": steps,
        "completions_in_all": completions_in_all,
    }


def evaluates(values):
    """Return whether a run evaluates on its held-out problems."""
    return values.eval_strategy != "no"


def mixed_precision(values):
    """Return the type of mixed precision as TRL decides it: "bf16", "fp16" or None."""
    if values.bf16 or (values.bf16 is None and not values.fp16):
        return "bf16"
    return "fp16" if values.fp16 else None
