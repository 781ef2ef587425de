"""What can be found wrong with an evaluation before weights are loaded: an error is a line that says what to type."""

import hashlib
import inspect
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from datasets import Dataset, load_dataset

from r1zero import files
from r1zero.evaluate import engines
from r1zero.preflight import data as data_checks
from r1zero.preflight import hardware as hardware_checks
from r1zero.preflight import model as model_checks
from r1zero.training.reward_functions import call_as_trl, resolve
from rewards import TASKS

SETTINGS = ("data", "limit", "seed", "n", "temperature", "max_completion_length", "batch_size", "backend", "dtype")


@dataclass
class Exam:
    """The problems, the functions that mark the completions, and the models that sit the exam."""

    problems: Dataset | None = None  # with their place in the file as the column `row`
    functions: dict = field(default_factory=dict)  # of a name in --reward_funcs to its function
    models: dict = field(default_factory=dict)  # of a name to its Model


def check(args):
    """The Exam that the flags name, and the list of what is wrong with them. args: the flags, all settled."""
    exam, errors = Exam(), flag_errors(args)
    if args.seed < 0:  # with which no problems can be chosen
        return exam, errors
    names, unusable = examine_data(args)
    if unusable:
        return exam, [*errors, *unusable]
    try:
        functions = resolve(names, Path(args.data).parent, args.allow_unsandboxed_code)
        exam.functions = dict(zip(names, functions, strict=True))
        exam.problems = read_problems(args, exam.functions)
    except (ValueError, RuntimeError) as error:
        return exam, [*errors, files.one_line(error)]
    for path in args.model:
        try:
            model = engines.read_model(path, args.trust_remote_code)
        except ValueError as error:
            errors.append(files.one_line(error))
            continue
        errors += model_errors(model, args, exam)
        exam.models[model.name] = model
    return exam, errors


def flag_errors(args):
    errors = []
    numbers = [args.n, args.max_completion_length, args.batch_size]
    if args.limit is not None:
        numbers.append(args.limit)
    if min(numbers) < 1:
        errors.append("wanted --n, --max_completion_length, --batch_size and --limit of at least 1")
    if args.seed < 0:
        errors.append(f"--seed {args.seed}: wanted at least 0")
    if not math.isfinite(args.temperature) or args.temperature < 0 or (args.n > 1 and not args.temperature):
        found = f"--temperature {args.temperature:g} with --n {args.n}"
        errors.append(f"{found}: wanted above 0, such as 0.6, or 0 with --n 1")
    return errors + device_errors(args)


def device_errors(args):
    """What keeps an evaluation from the GPU that is there, or from vLLM, as a list of one line at most."""
    cuda = torch.cuda.is_available()
    unseen = None if cuda or args.use_cpu else hardware_checks.why_unseen("--use_cpu evaluates on the CPU")
    if unseen:
        return [unseen]
    if args.backend != "vllm":
        return []
    if cuda and args.use_cpu:
        return ["--backend vllm computes on the GPU: leave out --use_cpu, or pass --backend transformers"]
    reason = engines.why_no_vllm()
    if reason:
        return [f"--backend vllm {reason}"]
    return hardware_checks.triton_errors() if cuda else []


def examine_data(args):
    """The names (list) of the reward functions that score the data, and what is wrong with it, as a list of lines."""
    advice = "write it with python preprocess.py TASK, or name another with --data"
    names = args.reward_funcs or readable_tasks(args.data)
    survey, errors = data_checks.examine(args.data, names, advice, first_rows=1)
    if errors:
        return names, errors
    if not names:
        readable = {name: task.columns for name, task in TASKS.items()}
        lacking = f"and lacks what a reward reads: {readable}"
        return names, [f"{args.data} has the columns {list(survey.first)} {lacking}; {advice}"]
    if not isinstance(survey.prompts[0], str):
        return names, [f"{args.data} has chats as prompts, wanted texts: apply the chat template first"]
    return names, []


def readable_tasks(path):
    """The names (list) of the functions of rewards.py whose columns a file has; none where it cannot be read."""
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException):
        return []
    read = data_checks.columns_read(TASKS, schema)
    return [name for name in read if set(read[name]) <= set(schema.names)]


def read_problems(args, functions):
    """The problems to score. Raises ValueError where the reward functions cannot work on them, or leave some out."""
    data = load_dataset("parquet", data_files=args.data, split="train")
    chosen = np.random.default_rng(args.seed).permutation(len(data))[: args.limit]
    chosen = data.add_column("row", range(len(data))).select(np.sort(chosen))
    unscored = 0
    for batch in chosen.remove_columns("row").iter(1024):
        prompts = batch.pop("prompt")
        scored = [False] * len(prompts)
        for name, function in functions.items():
            for row, reward in enumerate(rewards_of_nothing(name, function, prompts, batch, args.data)):
                scored[row] = scored[row] or reward is not None
        unscored += scored.count(False)
    if unscored:
        names = ", ".join(functions)
        raise ValueError(f"{unscored:,} of {len(chosen):,} rows get no reward from {names}: name the one for them too")
    return chosen


def rewards_of_nothing(name, function, prompts, columns, path):
    """The rewards of empty completions, None in rows of another task: they show what a function misses in the data."""
    try:
        return call_as_trl(function, prompts, [""] * len(prompts), columns)
    except Exception as error:  # a user's function may raise anything
        found = f"{path} has the columns {['prompt', *columns]}"
        reason = f"{type(error).__name__}: {files.one_line(error)}"
        raise ValueError(f"{found}, with which {name} cannot work ({reason})") from error


def model_errors(model, args, exam):
    """What is wrong with a model for these flags and for the models before it; fills in its longest prompt."""
    errors, highest = [], 0
    if model.name in exam.models:
        other = exam.models[model.name].path
        errors.append(f"{other} and {model.path} would write to one folder: give each its own --output_dir")
    for batch in exam.problems.select_columns("prompt").iter(1024):
        for ids in model.tokenizer(batch["prompt"])["input_ids"]:
            model.longest, highest = max(model.longest, len(ids)), max([highest, *ids])
    errors += model_checks.vocabulary_errors(model.config, model.tokenizer, highest)
    where = f"the context of {model.path}"
    errors += model_checks.context_errors(model.longest, args.max_completion_length, model.context, where)
    folder = Path(args.output_dir, model.name)
    changed = changed_settings(folder / "config.yaml", find_settings(model, args, exam.functions))
    if changed:
        errors.append(f"{folder} holds an evaluation with {changed}: remove it, or name another --output_dir")
    return errors


def changed_settings(path, settings):
    """How the settings of an earlier evaluation, in the file `path`, differ from these: a text, "" if not at all."""
    if not path.is_file():
        return ""
    try:
        before = dict(yaml.safe_load(path.read_text()))
        if (path.parent / "metrics.json").is_file():
            json.loads((path.parent / "metrics.json").read_text())
    except (TypeError, ValueError, yaml.YAMLError) as error:
        return f"a file that cannot be read ({files.one_line(error)})"
    changed = []
    for key, value in settings.items():
        if before.get(key) != value:
            changed.append(f"{key} {before.get(key)}, now {value}")
    return "; ".join(changed)


def find_settings(model, args, functions):
    """All that the results of a model's evaluation depend on, as a dict."""
    settings = {"model": model.path, "weights_written": model.written, "data_sha256": digest(args.data)}
    for name in SETTINGS:
        settings[name] = getattr(args, name)
    settings["reward_funcs"] = list(functions)
    for name, function in functions.items():
        if name not in TASKS:  # a user's own may have been changed since
            settings[f"{name} sha256"] = digest(inspect.getsourcefile(inspect.unwrap(function)))
    return settings


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
