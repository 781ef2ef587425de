"""Rewards that cannot be trained with: NaN, infinite, or given by no function; and the error that ends a run then."""

LARGEST = 3e38  # of float32, in which TRL adds rewards up
SHOWN = 200  # characters of a prompt or completion in a message


class BadNumber(Exception):
    """A number that would spoil the weights, or a reward that could not be given.

    batch: what it came of, anything that torch.save takes; None on a process that has found nothing itself.
    """

    def __init__(self, message, batch):
        super().__init__(message)
        self.batch = batch
        self.is_told = True  # by this process; one of those that have found a bad number tells it


def raise_on_all(bad):
    """Raises BadNumber on every process where one has found a bad number, so that none is left to wait for another.

    bad: the BadNumber of this process, or None. All processes have to call this.
    """
    # Here, as the page needs no torch
    import torch
    from accelerate import PartialState
    from accelerate.utils import gather

    state = PartialState()
    finders = [state.process_index] if bad else []
    if state.num_processes > 1:
        found = gather(torch.tensor([bad is not None], device=state.device))  # (processes,)
        finders = found.nonzero().flatten().tolist()
    if not finders:
        return
    bad = bad or BadNumber(f"process {finders[0]} has found a bad number", None)
    bad.is_told = state.process_index == finders[0]
    raise bad


def check_rewards(name, scores, prompts, completions, columns):
    """Raises BadNumber where a reward (float or None) of B completions is NaN or infinite. name: the function's."""
    for row, score in enumerate(scores):
        if score is not None and not abs(score) <= LARGEST:  # nor NaN
            row_text = row_as_text(row, prompts, completions)
            raise BadNumber(f"{name} gave {score} for {row_text}", row_of(row, prompts, completions, columns))


def check_scored(scored, prompts, completions, columns):
    """Raises BadNumber where no function gave a row a reward. scored: list of bool, one for each of B rows."""
    if all(scored):
        return
    row = scored.index(False)
    row_text = row_as_text(row, prompts, completions)
    raise BadNumber(f"no reward function scored {row_text}", row_of(row, prompts, completions, columns))


def row_as_text(row, prompts, completions):
    """What a message says of a row of a batch."""
    place = f"row {row} of a batch of {len(completions)}"
    return f"{place}, prompt {shown(prompts[row])}, completion {shown(completions[row])}"


def shown(value):
    """A value on one line, with its end where it is long: that is where an answer stands."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"... {text[-SHOWN:]}"


def row_of(row, prompts, completions, columns):
    """A row of a batch as a dict. columns: of the data, and what else TRL gives to reward functions."""
    found = {"row": row, "prompt": prompts[row], "completion": completions[row]}
    for name, values in columns.items():
        if isinstance(values, list) and len(values) == len(completions):
            found[name] = values[row]
    return found
