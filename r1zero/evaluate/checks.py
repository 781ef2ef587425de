"""What can be wrong with an evaluation before weights are loaded. Each error is a line that says what to type."""

import contextlib
import importlib.util
import inspect
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from datasets import Dataset, load_dataset

from r1zero import processes
from r1zero.evaluate.engines import read_model
from r1zero.files import checksum, one_line
from r1zero.preflight.data import columns_read, examine
from r1zero.preflight.hardware import why_unseen
from r1zero.preflight.model import context_errors, vocabulary_errors
from r1zero.tasks.problem_files import with_text_prompts
from r1zero.training.reward_functions import ours, resolve, score

SETTINGS = ("data", "limit", "seed", "n", "temperature", "max_completion_length", "batch_size", "backend", "dtype")


@dataclass
class Exam:
    """The problems, the functions that score the completions, and the models to evaluate."""

    problems: Dataset  # with their place in the file as the column `row`
    functions: dict  # of a name in --reward_funcs to its function
    models: dict = field(default_factory=dict)  # of a name to its Model


def check(args):
    """Return the Exam that the flags name, and the list of what is wrong with them. Data that is wrong has no Exam."""
    errors = device_errors(args)
    names, unusable = examine_data(args)
    if unusable:
        return None, [*errors, *unusable]
    try:
        functions = resolve(names, Path(args.data).parent, args.allow_unsandboxed_code)
        functions = dict(zip(names, functions, strict=True))
        exam = Exam(read_problems(args, functions), functions)
    except (ValueError, RuntimeError) as error:
        return None, [*errors, one_line(error)]
    for path in args.model:
        try:
            model = read_model(path, args.trust_remote_code)
        except ValueError as error:
            errors.append(one_line(error))
            continue
        errors += model_errors(model, args, exam)
        exam.models[model.name] = model
    return exam, errors


def device_errors(args):
    """Return what keeps an evaluation from the GPU of this machine, or from vLLM, as a list of one line at most."""
    cuda = torch.cuda.is_available()
    unseen = None if cuda or args.use_cpu else why_unseen("--use_cpu evaluates on the CPU")
    if unseen:
        return [unseen]
    if args.backend != "vllm":
        return []
    if cuda and args.use_cpu:
        return ["--backend vllm computes on the GPU: leave out --use_cpu, or pass --backend transformers"]
    if importlib.util.find_spec("vllm") is None:
        return ["--backend vllm needs vLLM: type pip install -e '.[gpu]', or pass --backend transformers"]
    return []


def examine_data(args):
    """Return the names (list) of the reward functions for the data, and the list of what is wrong with it."""
    advice = "write it with python preprocess.py TASK, or name another with --data"
    names = args.reward_funcs or []
    if not names:
        with contextlib.suppress(OSError, pa.ArrowException):  # examine() says why it cannot be read
            schema = pq.read_schema(args.data)
            read = columns_read(ours(), schema)
            names = [name for name in read if set(read[name]) <= set(schema.names)]
    survey, errors = examine(args.data, names, advice, first_rows=1)
    if errors:
        return names, errors
    if not names:
        readable = {name: function.task.columns for name, function in ours().items()}
        lacking = f"and lacks what a reward reads: {readable}"
        return names, [f"{args.data} has the columns {list(survey.first)} {lacking}; {advice}"]
    for notice in survey.notices if processes.is_main_process() else ():
        print(notice)
    if not isinstance(survey.prompts[0], str):
        return names, [f"{args.data} has chats as prompts, wanted texts: apply the chat template first"]
    return names, []


def read_problems(args, functions):
    """Return the problems to score. Raises ValueError if the functions fail on them, or leave some without reward."""
    data = with_text_prompts(load_dataset("parquet", data_files=args.data, split="train"))
    chosen = np.random.default_rng(args.seed).permutation(len(data))[: args.limit]
    chosen = data.add_column("row", range(len(data))).select(np.sort(chosen))
    columns = chosen.remove_columns("row").to_dict()
    prompts, rewards = columns.pop("prompt"), []
    for name, function in functions.items():
        try:  # a function that cannot work fails on empty completions too
            rewards.append(score(function, prompts, [""] * len(prompts), columns)[0])
        except Exception as error:  # a user's function may raise anything
            found = f"{args.data} has the columns {['prompt', *columns]}"
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise ValueError(f"{found}, with which {name} cannot work ({reason})") from error
    unscored = sum(set(of_row) == {None} for of_row in zip(*rewards, strict=True))
    if unscored:
        names = ", ".join(functions)
        raise ValueError(f"{unscored:,} of {len(chosen):,} rows get no reward from {names}: name the one for them too")
    return chosen


def model_errors(model, args, exam):
    """Return what is wrong with a model for these flags and beside the models before it; set its longest prompt."""
    errors, highest = [], 0
    if model.name in exam.models:
        other = exam.models[model.name].path
        errors.append(f"{other} and {model.path} would write to one folder: give each its own --output_dir")
    for ids in model.tokenizer(list(exam.problems["prompt"]))["input_ids"]:
        model.longest, highest = max(model.longest, len(ids)), max([highest, *ids])
    errors += vocabulary_errors(model.config, model.tokenizer, highest)
    of_model = f"the context of {model.path}"
    errors += context_errors(model.longest, args.max_completion_length, model.context, of_model)
    folder, settings = Path(args.output_dir, model.name), find_settings(model, args, exam.functions)
    earlier = folder / "config.yaml"
    before = yaml.safe_load(earlier.read_text()) if earlier.is_file() else settings
    changed = [f"{name} {before.get(name)}, now {new}" for name, new in settings.items() if before.get(name) != new]
    if changed:
        found = f"{folder} holds an evaluation with {'; '.join(changed)}"
        errors.append(f"{found}: remove it, or name another --output_dir")
    return errors


def find_settings(model, args, functions):
    """Return all that the results of a model's evaluation depend on, as a dict."""
    settings = {"model": model.path, "weights_written": model.written, "data_sha256": checksum(args.data)[:16]}
    for name in SETTINGS:
        settings[name] = getattr(args, name)
    settings["reward_funcs"] = list(functions)
    for name, function in functions.items():
        if name not in ours():  # a user's own may have been changed since
            settings[f"{name} sha256"] = checksum(inspect.getsourcefile(inspect.unwrap(function)))[:16]
    return settings
