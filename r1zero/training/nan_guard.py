"""End a run on all ranks, with one line, before a NaN or infinite number reaches the weights.

TRL takes a NaN reward for an abstention, and replaces a NaN advantage by 0. Trainer logs the mean of the earlier
losses instead of a NaN, and takes the step.
"""

import math

LARGEST = 3e38  # of float32, the type that TRL adds rewards up in
SHOWN = 200  # characters of a prompt or completion in a message


class BadNumber(Exception):
    """An error for a number that would spoil the weights. Its text is empty on ranks that found nothing themselves."""


def watch(trainer):
    """Make a trainer raise BadNumber on all ranks for a bad reward or gradient, without a collective of its own.

    The gathered rewards show infinite ones and rows that no function has scored. The gradient's norm is the same on
    all ranks. DeepSpeed gives it after the step and before a checkpoint. In float16 it may be infinite: the scaler
    skips such a step. trainer.reward_funcs: Scorers.
    """
    scorers = trainer.reward_funcs
    calculate_rewards, get_grad_norm = trainer._calculate_rewards, trainer._get_grad_norm
    for scorer in scorers:
        scorer.is_guarded = True

    def checked_rewards(inputs, prompts, completions, ids):
        gathered = calculate_rewards(inputs, prompts, completions, ids)  # (B * ranks, functions), NaN for None
        unscored = gathered.isnan().all(dim=1)
        if gathered.isinf().any() or unscored.any():
            first = trainer.accelerator.process_index * len(prompts)
            faults = [scorer.fault for scorer in scorers if scorer.fault]
            for row in unscored[first : first + len(prompts)].nonzero().flatten().tolist():
                faults.append(f"no reward function scored {in_words(row, prompts, completions)}")
            raise BadNumber(*faults[:1])
        return gathered

    def checked_norm(model, grad_norm=None):
        norm = get_grad_norm(model, grad_norm)
        value = norm.item() if hasattr(norm, "item") else norm
        if value is not None and not 0 <= value < math.inf and not trainer.args.fp16:
            found = "nan or infinite" if value < 0 else value  # DeepSpeed gives -1 for both
            raise BadNumber(f"the norm of the gradient is {found}" if trainer.is_world_process_zero() else "")
        return norm

    trainer._calculate_rewards, trainer._get_grad_norm = checked_rewards, checked_norm


def in_words(row, prompts, completions):
    """Return a row of a batch, its prompt and its completion, as words for a message."""
    place = f"row {row} of a batch of {len(completions)}"
    return f"{place}, prompt {shown(prompts[row])}, completion {shown(completions[row])}"


def shown(value):
    """Return a value on one line. Of a long one return the end, as an answer is there."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"... {text[-SHOWN:]}"
