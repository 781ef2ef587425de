"""What can be found wrong with an evaluation before weights are loaded: an error is a line that says what to type."""

import hashlib
import inspect
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from datasets import Dataset, load_dataset

from r1zero import cards, engines
from r1zero.reward_functions import call_as_trl, resolve
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
    try:
        exam.functions = choose_functions(args)
        exam.problems = read_problems(args, exam.functions)
    except (ValueError, RuntimeError) as error:
        return exam, [*errors, str(error)]
    for path in args.model:
        try:
            model = engines.read_model(path)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            errors.append(f"model {path} cannot be had ({reason}): give a folder or a hub id that is there")
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
    if args.temperature < 0 or (args.n > 1 and not args.temperature):
        found = f"--temperature {args.temperature:g} with --n {args.n}"
        errors.append(f"{found}: wanted above 0, such as 0.6, or 0 with --n 1")
    return errors + device_errors(args)


def device_errors(args):
    """What keeps an evaluation from the GPU that is there, or from vLLM, as a list of one line at most."""
    cuda = torch.cuda.is_available()
    unseen = None if cuda or args.use_cpu else cards.why_unseen("--use_cpu evaluates on the CPU")
    if unseen:
        return [unseen]
    if args.backend != "vllm":
        return []
    if cuda and args.use_cpu:
        return ["--backend vllm computes on the GPU: leave out --use_cpu, or pass --backend transformers"]
    reason = engines.why_no_vllm()
    return [f"--backend vllm {reason}"] if reason else []


def choose_functions(args):
    """The functions that score the data, as a dict by name: those of --reward_funcs, or all of ours that can read it.

    Raises ValueError or RuntimeError where the file or a function cannot be had, or where the file lacks something.
    """
    advice = "write it with python preprocess.py TASK, or name another with --data"
    try:
        schema, rows = pq.read_schema(args.data), pq.read_metadata(args.data).num_rows
    except (OSError, ValueError) as error:
        raise ValueError(f"{args.data} is no readable parquet file ({error}): {advice}") from None
    names = args.reward_funcs
    if not names:
        names = [name for name, task in TASKS.items() if set(task.columns) <= set(schema.names)]
    functions = resolve(names, Path(args.data).parent, args.allow_unsandboxed_code)
    wanted = lacking(names, schema, rows)
    if wanted:
        raise ValueError(f"{args.data} has the columns {schema.names} and lacks {wanted}; {advice}")
    prompts = schema.field("prompt").type
    if not (pa.types.is_string(prompts) or pa.types.is_large_string(prompts)):
        raise ValueError(f"{args.data} has prompts of the type {prompts}, wanted texts: apply the chat template first")
    return dict(zip(names, functions, strict=True))


def lacking(names, schema, rows):
    """What a file lacks for these reward functions, as text, or "". A user's own show it when they are called."""
    columns = {"prompt"}
    for name in names:
        if name in TASKS:
            columns.update(TASKS[name].columns)
    columns -= set(schema.names)
    if columns:
        return " and ".join(sorted(columns))
    if not rows:
        return "rows"
    if not names:
        readable = {name: task.columns for name, task in TASKS.items()}
        return f"what a reward reads: {readable}"
    return ""


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
        reason = " ".join(str(error).split())
        raise ValueError(f"{found}, with which {name} cannot work ({type(error).__name__}: {reason})") from error


def model_errors(model, args, exam):
    """What is wrong with a model for these flags and for the models before it; fills in its longest prompt."""
    errors = []
    if model.name in exam.models:
        other = exam.models[model.name].path
        errors.append(f"{other} and {model.path} would write to one folder: give each its own --output_dir")
    for batch in exam.problems.select_columns("prompt").iter(1024):
        lengths = [len(ids) for ids in model.tokenizer(batch["prompt"])["input_ids"]]
        model.longest = max(model.longest, *lengths)
    if model.longest + args.max_completion_length > model.context:
        errors.append(
            f"a prompt of {model.longest} tokens and --max_completion_length {args.max_completion_length} exceed the "
            f"context of {model.path}, {model.context}: give at most {model.context - model.longest}"
        )
    folder = Path(args.output_dir, model.name)
    changed = changed_settings(folder / "config.yaml", find_settings(model, args, exam.functions))
    if changed:
        errors.append(f"{folder} holds an evaluation with {changed}: remove it, or name another --output_dir")
    return errors


def changed_settings(path, settings):
    """How the settings of an earlier evaluation, in the file `path`, differ from these: a text, "" if not at all."""
    if not path.is_file():
        return ""
    before = yaml.safe_load(path.read_text())
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
