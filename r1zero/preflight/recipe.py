"""The settings of a run: the recipe's YAML, then the flags, as one namespace, and the batch for its processes."""

import argparse
import difflib
import math
import os
import sys
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import yaml

from r1zero import processes, schedule
from r1zero.preflight import settings

CLOSE = 1 / 8  # of completions_per_step: to come nearer is not worth a smaller batch a device
RENAMED = {  # what other projects' recipes have, and has another nearest name here
    "torch_dtype": "did you mean dtype?",
    "max_prompt_length": "TRL has it no more; preprocess.py --max_prompt_length leaves out longer prompts",
}


class Flags(NamedTuple):
    """A command line: what --config names (str, None if not given), the settings given (dict), and unknown words."""

    config: str | None
    given: dict
    unknown: list


class UniqueLoader(yaml.SafeLoader):
    """Read YAML as yaml.safe_load does, and refuse a key that stands there twice."""

    def construct_mapping(self, node, deep=False):
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_flags(parser, argv):
    """Return the Flags of argv (list[str]). parser: a TrlParser. Exit for --help, and for a value of another type."""

    def refuse(message):  # argparse itself would print the names of all 250 flags first
        processes.stop("a setting cannot be read", [message])

    option = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    option.add_argument("--config")
    parser.error = option.error = refuse
    option, words = option.parse_known_args(argv)
    if "-h" in words or "--help" in words:
        parser.print_help()
        sys.exit(0)
    absent = object()  # argparse writes defaults only over what is missing, so that what stays absent was not given
    found, unknown = parser.parse_known_args(
        words, argparse.Namespace(**{action.dest: absent for action in parser._actions})
    )
    return Flags(option.config, {name: value for name, value in vars(found).items() if value is not absent}, unknown)


def resolve(parser, flags, machine):
    """Return the recipe's path (str) and every setting as one namespace: --config or the machine's recipe, then flags.

    parser: a TrlParser, whose defaults become the recipe's; flags: Flags; machine: a Machine. The YAML's `env` goes
    into os.environ. Exit if the YAML cannot be read, or if it or a flag names a setting that does not exist or has a
    value that cannot be meant.
    """
    path = flags.config or machine.choose_recipe(flags.given.get("use_cpu"))
    try:
        recipe = yaml.load(Path(path).read_text(), UniqueLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        processes.stop(f"--config {path} is not a readable YAML mapping", [str(error)])
    if not isinstance(recipe, dict):
        found = f"found {recipe!r}, wanted lines as max_steps: 96"
        processes.stop(f"--config {path} is not a readable YAML mapping", [found])
    environment = recipe.pop("env", {})
    if not isinstance(environment, dict):
        processes.stop(f"{path} cannot run as it is", [f"env is {environment!r}, wanted lines as NCCL_DEBUG: INFO"])

    unknown = parser.set_defaults_with_config(**{str(name): value for name, value in recipe.items()}) + flags.unknown
    if unknown:
        known = [action.dest for action in parser._actions]
        processes.stop(f"{path} and the flags name settings that do not exist", unknown_settings(unknown, known))
    errors = settings.errors(recipe | flags.given, parser.dataclass_types)
    if errors:
        processes.stop(f"{path} cannot run as it is", errors)
    os.environ.update({name: str(value) for name, value in environment.items()})
    if "gradient_accumulation_steps" not in recipe:
        parser.set_defaults(gradient_accumulation_steps=None)  # for fit
    return path, parser.parse_args([], argparse.Namespace(**flags.given))  # fills in what the flags leave open


def unknown_settings(words, known):
    """Return a line for each name that is no setting, with what it is here. words: flags and their values."""
    errors = []
    for word in [word for word in words if word.startswith("--")] or words:
        name = word.lstrip("-").split("=")[0]
        nearest = difflib.get_close_matches(name, known, n=1)
        meant = f"did you mean {nearest[0]}?" if nearest else "nothing has a name like it; see --help"
        errors.append(f"{name}: {RENAMED.get(name, meant)}")
    return errors


def fit(values, processes):
    """Set gradient_accumulation_steps, and the batch a device if need be, so that a step has completions_per_step.

    values: every setting, changed in place. If whole groups on so many processes do not make that number, a step has
    the nearest one that they do make. Accumulation costs no speed, so the batch a device is lowered only if the number
    would be far from what is wanted. steps_per_generation then counts optimizer steps: it is multiplied by the
    accumulation, as TRL counts micro-batches. An explicit gradient_accumulation_steps stays, and so does
    steps_per_generation; without either setting it is TRL's 1. Return what to tell the user (list[str]).
    """
    wanted, given = values.completions_per_step, values.per_device_train_batch_size
    by = f"groups of {values.num_generations} and {processes} process{'es' * (processes > 1)}"
    notices = []
    if values.gradient_accumulation_steps is not None or wanted is None:
        values.gradient_accumulation_steps = accumulation = values.gradient_accumulation_steps or 1
        made = given * processes * accumulation
        if wanted not in (None, made):
            notices.append(
                f"batch: {made:,} completions a step and not {wanted:,}: gradient_accumulation_steps is given"
            )
    else:
        chosen = nearest_batch(values, wanted, processes)
        values.per_device_train_batch_size, values.gradient_accumulation_steps = chosen
        if values.steps_per_generation:
            values.steps_per_generation *= values.gradient_accumulation_steps
        made = chosen[0] * chosen[1] * processes
        if made != wanted:
            notices.append(f"batch: {made:,} completions a step, the nearest to {wanted:,} that {by} divide")
        if chosen[0] != given:
            notices.append(f"batch: per_device_train_batch_size is {chosen[0]} and not {given}, to divide into {by}")
    values.completions_per_step = made  # config.yaml says what was trained
    at_once = values.per_device_train_batch_size * processes
    if values.generation_batch_size and not values.steps_per_generation and not values.generation_batch_size % at_once:
        values.steps_per_generation, values.generation_batch_size = values.generation_batch_size // at_once, None
    return notices


def nearest_batch(values, wanted, processes):
    """Return the batch a device and the accumulation (ints) that make the number nearest to the completions wanted."""
    options = []  # (how far from it, the batch a device, the accumulation)
    for per_device in range(values.per_device_train_batch_size, 0, -1):
        at_once = per_device * processes
        generated = at_once * (values.steps_per_generation or 1)
        whole = values.num_generations // math.gcd(values.num_generations, generated)  # the least for whole groups
        accumulation = whole * max(1, round(wanted / (at_once * whole)))
        options.append((abs(at_once * accumulation - wanted), per_device, accumulation))
    off, per_device, accumulation = options[0]
    if off > CLOSE * wanted:
        _, per_device, accumulation = min(options, key=lambda option: option[0])
    return per_device, accumulation


def fit_evaluation(values, rows, processes):
    """Lower per_device_eval_batch_size to what the held-out rows (int) fill on so many processes, in whole groups.

    Return what to tell the user (list[str]). With fewer rows than one group for each process it stays as it is.
    """
    group = values.num_generations_eval or values.num_generations
    most = rows // processes // group * group
    if not 0 < most < values.per_device_eval_batch_size:
        return []
    values.per_device_eval_batch_size = most
    return [f"evaluation: per_device_eval_batch_size is {most:,}, as {rows:,} held-out rows fill no more"]


def fit_vllm(values, peaks, card):
    """Lower vllm_gpu_memory_utilization to what leaves a tenth of a card free in generation, if it leaves less.

    peaks: of the plan.Plan; card: its bytes, or None. Return what to tell the user (list[str]). If that leaves vLLM
    less than a tenth, the setting stays, and the plan says that it will not fit.
    """
    if not (values.use_vllm and values.vllm_mode == "colocate" and card and peaks):
        return []
    taken = peaks["generation"] / card
    others = taken - values.vllm_gpu_memory_utilization
    share = math.floor(20 * (0.9 - others)) / 20
    if taken <= 0.9 or share < 0.1:
        return []
    values.vllm_gpu_memory_utilization = share
    return [f"vLLM: vllm_gpu_memory_utilization is {share}, what this card leaves it"]


def save_errors(values, processes):
    """Return a line if checkpoints would be saved inside a generation, from where no run resumes exactly (list)."""
    every, run_steps = values.save_steps, schedule.schedule(values, None, processes)["steps"]
    if every < 1:  # a share of all steps, as Trainer takes it
        every = math.ceil(every * run_steps) if run_steps else 1
    # After so many steps a generation ends too: span may be a fraction
    span = Fraction(schedule.span(values)).limit_denominator(10**6).numerator
    if values.save_strategy != "steps" or every % span == 0:
        return []
    return [
        f"save_steps {values.save_steps:g} is no multiple of the {span} optimizer steps on one generation, so a "
        f"checkpoint would not resume exactly: set --save_steps to {max(1, every // span) * span:g}"
    ]
