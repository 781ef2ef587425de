"""A run ends before a number that is NaN or infinite reaches the weights, with one line, on all ranks.

TRL takes a NaN reward for an abstention and makes 0 of a NaN advantage. Trainer logs the mean of the earlier losses in
the place of a NaN, and takes the step.
"""

import math

LARGEST = 3e38  # of float32, in which TRL adds rewards up
SHOWN = 200  # characters of a prompt or completion in a message


class BadNumber(Exception):
    """A number that would spoil the weights. Its text is empty on a rank that has found nothing itself."""


def watch(trainer):
    """Have a trainer raise BadNumber on all ranks for a bad reward or gradient. It needs no collective of its own.

    Rewards are looked at once they are gathered: infinite ones, and rows that no function has scored. The gradient's
    norm is the same on all ranks. With DeepSpeed it is known after the step, and before a checkpoint. In float16 it
    may be infinite: the scaler leaves such a step out. trainer.reward_funcs: Scorers.
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
        if norm is not None and not 0 <= norm < math.inf and not trainer.args.fp16:
            found = "nan or infinite" if norm < 0 else f"{float(norm)}"  # DeepSpeed gives -1 for both
            raise BadNumber(f"the norm of the gradient is {found}" if trainer.is_world_process_zero() else "")
        return norm

    trainer._calculate_rewards, trainer._get_grad_norm = checked_rewards, checked_norm


def in_words(row, prompts, completions):
    """Return what a message says of a row of a batch."""
    place = f"row {row} of a batch of {len(completions)}"
    return f"{place}, prompt {shown(prompts[row])}, completion {shown(completions[row])}"


def shown(value):
    """Return a value on one line, only its end if it is long: that is where an answer stands."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"... {text[-SHOWN:]}"
