"""How many completions one generation makes, and what keeps their number where other processes share it."""

import math
import re
from pathlib import Path

from r1zero import ROOT

CLOSE = 1 / 8  # of the wanted completions; to come nearer is not worth a smaller batch on each device


def header_processes(path):
    """How many processes the command in a recipe's header starts: its --num_processes, or one."""
    match = re.search(r"^#.*--num_processes (\d+)", Path(path).read_text(), flags=re.MULTILINE)
    return int(match[1]) if match else 1


def completions(values, processes):
    """The completions of one generation. values: every setting."""
    steps = values.steps_per_generation or values.gradient_accumulation_steps
    return values.generation_batch_size or values.per_device_train_batch_size * processes * steps


def share(recipe, chosen, processes):
    """What keeps the completions of a machine.Recipe where its header means other processes than there are.

    chosen: whether the recipe was chosen for this machine, and not named. Returns (flags, line): the flags to add,
    which one that was named does not get, and what to say (str), None where all is as the recipe means it.
    """
    values, meant = recipe.values, header_processes(recipe.path)
    told = ("--gradient_accumulation_steps", "--steps_per_generation", "--generation_batch_size")
    if processes == meant or any(word.split("=")[0] in told for word in recipe.flags):
        return [], None
    wanted = completions(values if chosen else recipe.own, meant)
    settings, made = nearest(values, wanted, processes)
    flags = as_flags(values, settings)
    if chosen:
        if made == wanted:
            return flags, None
        by = f"groups of {values.num_generations} and {processes} processes"
        return flags, f"batch: {made:,} completions a generation, the nearest to {wanted:,} that {by} divide"
    now = completions(values, processes)
    if now == wanted:
        return [], None
    here = "one process" if processes == 1 else f"{processes} processes"
    there = "one" if meant == 1 else meant
    return [], (
        f"batch: {now:,} completions a generation on {here}, where {recipe.path} means {wanted:,} on {there}: pass "
        f"{' '.join(flags)} for {made:,}"
    )


def share_evaluation(recipe, processes):
    """The flags (list[str]) with which more processes than a machine.Recipe means evaluate as many problems at a time.

    A recipe of this project has a batch that is as large as its cards allow: on eight cards, that of one card would be
    more than the held-out problems. It changes no result, so that a recipe that was named gets them too.
    """
    values, meant = recipe.values, header_processes(recipe.path)
    told = any(word.split("=")[0] == "--per_device_eval_batch_size" for word in recipe.flags)
    if processes <= meant or told or Path(recipe.path).resolve().parent != ROOT / "configs":
        return []
    group = values.num_generations_eval or values.num_generations
    size = values.per_device_eval_batch_size * meant // processes // group * group
    return ["--per_device_eval_batch_size", str(max(size, group))]


def nearest(values, wanted, processes):
    """The settings with which so many processes make the number of completions nearest to `wanted`.

    Returns (settings, completions): a dict, and the number, which groups divide. Only accumulation changes, which is a
    matter of time alone, unless that does not come close: then a device's batch as well.
    """
    per_device = values.per_device_train_batch_size
    found = with_batch(values, wanted, processes, per_device)
    if abs(found[1] - wanted) > CLOSE * wanted:
        options = [with_batch(values, wanted, processes, size) for size in range(per_device, 0, -1)]
        found = min(options, key=lambda option: abs(option[1] - wanted))
    return found


def with_batch(values, wanted, processes, per_device):
    """The same for so many completions at a time on each device.

    As many optimizer steps as before share a generation, so that a checkpoint may be taken where it was.

    >>> from types import SimpleNamespace
    >>> lora = {"gradient_accumulation_steps": 64, "steps_per_generation": None, "num_generations": 8}
    >>> with_batch(SimpleNamespace(**lora), 256, 3, 4)  # 4 x 3 x 21 = 252 would be nearer, and no whole groups
    ({'per_device_train_batch_size': 4, 'gradient_accumulation_steps': 22}, 264)
    """
    accumulation = values.gradient_accumulation_steps
    steps = values.steps_per_generation or accumulation
    common = math.gcd(accumulation, steps)
    unit = per_device * processes * steps // common  # the fewest completions with such a share of optimizer steps
    least = math.lcm(unit, values.num_generations)  # the fewest that are whole groups too
    made = least * max(1, round(wanted / least))
    settings = {
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": made // unit * accumulation // common,
    }
    if values.steps_per_generation:
        settings["steps_per_generation"] = made // unit * steps // common
    return settings, made


def as_flags(values, settings):
    """Those of the settings (dict) that are not so already, as the words of a command."""
    words = []
    for name, value in settings.items():
        if getattr(values, name) != value:
            words += [f"--{name}", str(value)]
    return words
