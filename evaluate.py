"""Score models on held-out problems: accuracy with its interval, pass@k, and how the answers came about.

    python evaluate.py --model models/tiny outputs/tiny_cpu --data data/countdown_tiny/test.parquet
    python evaluate.py --model outputs/qwen2.5-1.5b --data data/countdown/test.parquet --n 16 --temperature 0.6
    accelerate launch --config_file configs/accelerate/ddp.yaml evaluate.py --model ...  # each GPU takes its share

A model is a folder, a LoRA checkpoint's folder, or a hub id; data is a file that preprocess.py has written, with its
prompts as they are, scored by rewards.py. vLLM generates where it and a GPU are there, transformers elsewhere.

Leaves in <output_dir>/<model's name>: completions.parquet (a row a completion), metrics.json and config.yaml. Every
batch is on disk once it is scored: what was interrupted goes on by the same command, with any number of processes.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import yaml
from accelerate import PartialState
from datasets import Dataset, load_dataset
from peft import AutoPeftModelForCausalLM
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

import preflight
import preprocess
import record
import report
import rewards
import sandbox
from behaviours import LONG, behaviours, cells

REWARDS = {  # and the columns that they read
    "countdown_reward": ("nums", "target"),
    "multiplication_reward": ("product",),
    "boxed_math_reward": ("solution",),
    "code_reward": ("tests",),
}
BEHAVIOURS = list(behaviours(""))


@dataclass
class Model:
    """What is known of a model before its weights are loaded."""

    path: str  # a folder or hub id
    base: str  # the same, or the model that the LoRA adapter at `path` is for
    tokenizer: PreTrainedTokenizerBase
    ends: list[int]  # tokens that end a completion
    context: int  # tokens of prompt and completion
    written: str  # when its weights were, or their commit on the hub
    longest: int = 0  # tokens of the longest prompt

    @property
    def name(self):
        """The folder's name; a checkpoint's with its run's before it."""
        folder = Path(self.path).resolve() if Path(self.path).is_dir() else Path(self.path)
        return f"{folder.parent.name}-{folder.name}" if folder.name.startswith("checkpoint-") else folder.name


def read_model(path):
    """The Model at a path. Raises OSError, ValueError or KeyError where there is none."""
    adapter = Path(path, "adapter_config.json")
    base = json.loads(adapter.read_text())["base_model_name_or_path"] if adapter.is_file() else path
    newest = 0
    for place in {path, base}:
        folder = Path(place)
        files = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
        newest = max([newest, *(file.stat().st_mtime for file in files)])
        if not files and (preflight.is_path(place) or folder.is_dir()):
            raise OSError(f"no weights in a folder of the name {place}")
    config = AutoConfig.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(path if Path(path, "tokenizer_config.json").is_file() else base)
    try:
        ends = GenerationConfig.from_pretrained(base).eos_token_id
    except OSError:  # it has no generation_config.json
        ends = config.get_text_config().eos_token_id
    ends = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
    context = getattr(config.get_text_config(), "max_position_embeddings", sys.maxsize)
    written = datetime.fromtimestamp(newest).isoformat() if newest else str(config._commit_hash)
    return Model(path, base, tokenizer, sorted(ends), context, written)


def load(model, dtype):
    """The transformers model, a LoRA adapter merged into its base in float32."""
    if model.base == model.path:
        return AutoModelForCausalLM.from_pretrained(model.path, dtype=dtype).eval()
    adapted = AutoPeftModelForCausalLM.from_pretrained(model.path, dtype=torch.float32)
    return adapted.merge_and_unload().to(getattr(torch, dtype)).eval()


# Engines give generate(prompts, seeds): B lists of token ids and B * n ints -> B * n lists of token ids, the n of a
# prompt next to each other, each up to the token that ends it or beyond.


@contextlib.contextmanager
def transformers_engine(model, args, state):
    loaded = load(model, args.dtype).to(state.device)
    pad = model.tokenizer.pad_token_id or 0  # masked before a prompt, cut off behind an end
    sampling = {"do_sample": True, "temperature": args.temperature, "top_p": 1.0, "top_k": 0}
    # In place of the model's own, which may hold a top_k or a repetition_penalty
    loaded.generation_config = GenerationConfig(
        max_new_tokens=args.max_completion_length,
        num_return_sequences=args.n,
        eos_token_id=model.ends or None,
        pad_token_id=pad,
        **(sampling if args.temperature else {"do_sample": False}),
    )

    def generate(prompts, seeds):
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])  # (B, T)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        torch.manual_seed(seeds[0])
        with torch.inference_mode():
            output = loaded.generate(input_ids=ids.to(state.device), attention_mask=mask.to(state.device))
        return output[:, width:].tolist()

    yield generate


@contextlib.contextmanager
def vllm_engine(model, args, state):
    from trl.trainer.utils import ensure_master_addr_port
    from vllm import LLM, SamplingParams

    # One engine in each process, on the process's own GPU, as TRL has it
    places = {"RANK": state.process_index, "LOCAL_RANK": state.local_process_index, "WORLD_SIZE": state.num_processes}
    os.environ |= {name: str(place) for name, place in places.items()}
    ensure_master_addr_port()
    with tempfile.TemporaryDirectory() as merged:
        if model.base != model.path:
            load(model, args.dtype).save_pretrained(merged)
            model.tokenizer.save_pretrained(merged)
        llm = LLM(
            model=model.path if model.base == model.path else merged,
            dtype=args.dtype,
            seed=args.seed,
            max_model_len=model.longest + args.max_completion_length,
            distributed_executor_backend="external_launcher",
            enable_sleep_mode=True,
        )

    def generate(prompts, seeds):
        requests = [{"prompt_token_ids": prompt} for prompt in prompts for _ in range(args.n)]
        settings = {"temperature": args.temperature, "max_tokens": args.max_completion_length}
        params = [SamplingParams(**settings, stop_token_ids=model.ends, seed=seed) for seed in seeds]
        return [list(result.outputs[0].token_ids) for result in llm.generate(requests, params, use_tqdm=False)]

    yield generate
    llm.sleep(level=2)  # frees the GPU for the next model


def score(functions, columns, completions):
    """What rewards.py makes of B completions: dict of reward, correct, answered and the columns for log_extra.

    columns: dict of B values each. Whether a row is right and has an answer is what its reward logs, one value a row.
    Where several functions score a row, which none do by default, their rewards add up and all must find it right.
    """
    extra, scored = {}, [[] for _ in completions]
    for function in functions:
        logged = {"accuracy": [], "format_rate": []}
        given = function(
            completions=completions,
            **columns,
            log_extra=extra.__setitem__,
            log_metric=lambda name, value, logged=logged: logged.setdefault(name, []).append(value),
        )
        own = [(row, reward) for row, reward in zip(scored, given, strict=True) if reward is not None]
        for (row, reward), *rates in zip(own, logged["accuracy"], logged["format_rate"], strict=True):
            row.append((reward, *rates))
    reward, correct, answered = zip(*(zip(*row, strict=True) for row in scored), strict=True)
    reward, correct, answered = map(sum, reward), map(all, correct), map(all, answered)
    return {"reward": list(reward), "correct": list(correct), "answered": list(answered), **extra}


def completion_rows(model, args, functions, batch, ids):
    """The table of a batch of B problems (dict of columns), a row a completion. ids: B * n lists of token ids."""
    ids = [row[: next((i + 1 for i, token in enumerate(row) if token in model.ends), None)] for row in ids]
    completions = model.tokenizer.batch_decode(ids, skip_special_tokens=True)
    columns = {name: [value for value in values for _ in range(args.n)] for name, values in batch.items()}
    places, prompts = columns.pop("row"), columns.pop("prompt")
    none = [None] * len(ids)
    kinds = cells(columns["nums"], columns["target"]) if "nums" in columns else none
    counts = list(map(behaviours, completions))
    return pa.table(
        {
            "row": places,
            "data_source": pa.array(columns.get("data_source", none), pa.string()),
            "cell": pa.array([kind and ", ".join(kind) for kind in kinds], pa.string()),
            "prompt": prompts,
            "completion": completions,
            **score(functions, {"prompts": prompts, **columns}, completions),
            "tokens": [len(row) for row in ids],
            "truncated": [row[-1] not in model.ends for row in ids],
            **{name: [count[name] for count in counts] for name in BEHAVIOURS},
        }
    )


def generate_missing(model, args, facts, parts, state):
    """Generates, scores and writes this process's share of the parts that are not there yet.

    What is sampled depends on the seed and the part alone, so not on interruptions or the number of processes.
    """
    own = parts[state.process_index :: state.num_processes]
    missing = [part for part in own if not part.exists()]
    if not missing:
        return
    engine = vllm_engine if args.backend == "vllm" else transformers_engine
    with engine(model, args, state) as generate:
        bar = {"initial": len(own) - len(missing), "total": len(own), "disable": not state.is_main_process}
        for part in tqdm(missing, desc=model.name, unit="batch", **bar):
            number = int(part.stem)
            batch = facts.problems[number * args.batch_size : (number + 1) * args.batch_size]
            seeds = np.random.SeedSequence([args.seed, number]).generate_state(len(batch["prompt"]) * args.n).tolist()
            started = time.monotonic()
            ids = generate(model.tokenizer(batch["prompt"])["input_ids"], seeds)
            seconds = time.monotonic() - started
            table = completion_rows(model, args, facts.functions, batch, ids)
            # A half-written part never carries the real name
            pq.write_table(table.replace_schema_metadata({"seconds": str(seconds)}), f"{part}.part")
            Path(f"{part}.part").replace(part)


def gather(parts, path):
    """Joins the parts into one file at `path`, some at a time; returns the seconds that generation took."""
    schemas = [pq.read_schema(part) for part in parts]
    # A column that is empty in a part has no type there
    schema = pa.unify_schemas([schema.remove_metadata() for schema in schemas], promote_options="permissive")
    with pq.ParquetWriter(f"{path}.part", schema) as writer:
        for some in preprocess.batches(parts, 16):
            writer.write_table(pa.concat_tables(pq.read_table(part).cast(schema) for part in some))
    Path(f"{path}.part").replace(path)
    return sum(float(schema.metadata[b"seconds"]) for schema in schemas)


def pass_at_k(n, c, k):
    """The chance that one of k completions is right, from n of which c are: unbiased (Chen et al. 2021).

    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 3, 2)
    (0.25, 0.5, 1.0)
    """
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def accuracy_interval(right, n):
    """Wilson's 95 % interval (low, high) of accuracy. right: (N,) ints, how many of n completions of each problem are.

    Completions of one problem are alike, so that N * n of them are worth less: the interval is for as many independent
    ones as would vary as much as the mean over problems does, which is N where n is 1.
    """
    share, variance = float(right.mean()) / n, float(right.var()) / n**2
    size = min(len(right) * share * (1 - share) / variance, len(right) * n) if variance else len(right)
    return report.wilson(share, size)


def summarize(path, n, seconds):
    """metrics.json from a file of completions, read without its texts. Shares are fractions, lengths tokens.

    tokens_per_second: of one process. A value is None where there is nothing to take it from.
    """
    names = ["reward", "correct", "answered", "tokens", "truncated", *BEHAVIOURS]
    columns = pq.read_table(path, columns=["data_source", "cell", *names])
    table = {name: columns[name].to_numpy() for name in names}
    table["over_200_tokens"] = table["tokens"] > LONG
    right = table["correct"].reshape(-1, n).sum(1)  # (problems,)

    def mean(name, rows=slice(None)):
        return float(table[name][rows].mean()) if len(table[name][rows]) else None

    def split_by(name):
        """The same for the rows of each value of a column."""
        values = sorted(columns[name].unique().drop_null().to_pylist())
        groups = {value: pc.equal(columns[name], value).fill_null(False).to_numpy() for value in values}
        return {
            value: {
                "problems": int(rows.sum()) // n,
                "accuracy": mean("correct", rows),
                "answers_that_multiply": mean("answer_multiplies", rows & table["answered"]),
            }
            for value, rows in groups.items()
        }

    return {
        "problems": len(right),
        "n": n,
        "accuracy": mean("correct"),
        "accuracy_interval": accuracy_interval(right, n),
        "pass@k": {
            k: sum(pass_at_k(n, c, k) for c in right.tolist()) / len(right)
            for k in sorted({2**i for i in range(n.bit_length())} | {n})
        },
        "reward": mean("reward"),
        "format_rate": mean("answered"),
        "truncated": mean("truncated"),
        "mean_completion_tokens": mean("tokens"),
        "median_completion_tokens": float(np.median(table["tokens"])),
        "tokens_per_second": float(table["tokens"].sum() / seconds),
        "cells": split_by("cell"),
        "data_sources": split_by("data_source"),
        "behaviours": {
            name: {
                "all": mean(name),
                "correct": mean(name, table["correct"]),
                "incorrect": mean(name, ~table["correct"]),
            }
            for name in [*BEHAVIOURS, "over_200_tokens"]
        },
    }


def describe(metrics):
    """What the table says of one model: its sections, each a dict of label to text."""
    low, high = metrics["accuracy_interval"]
    sources = metrics["data_sources"] if len(metrics["data_sources"]) > 1 else {}

    def percent(share):
        return "-" if share is None else f"{share:.1%}"

    def each(means):
        return " / ".join("-" if mean is None else f"{mean:.2f}" for mean in means.values())

    return [
        {
            "accuracy (95 % interval)": f"{percent(metrics['accuracy'])} ({100 * low:.1f} to {100 * high:.1f})",
            **{f"pass@{k}": percent(share) for k, share in metrics["pass@k"].items() if metrics["n"] > 1},
            "with an answer": percent(metrics["format_rate"]),
            "truncated": percent(metrics["truncated"]),
            "mean reward": f"{metrics['reward']:.3f}",
            "tokens, mean / median": "{mean_completion_tokens:.1f} / {median_completion_tokens:g}".format(**metrics),
            "tokens a second": f"{metrics['tokens_per_second']:,.0f}",
        },
        {f"{name} ({part['problems']:,})": percent(part["accuracy"]) for name, part in sources.items()},
        {
            f"{name} ({part['problems']:,})": f"{percent(part['accuracy'])}, {percent(part['answers_that_multiply'])}"
            for name, part in metrics["cells"].items()
        },
        {name.replace("_", " "): each(means) for name, means in metrics["behaviours"].items()},
    ]


def print_table(results):
    """results: dict of a model's name to its metrics, a column each."""
    first = next(iter(results.values()))
    title = f"{first['problems']:,} problems, {first['n']} completions each"
    caption = "Cells: accuracy, share of answers with * or /. Below: count a completion, all / correct / incorrect"
    table = Table("", *results, title=title, caption=caption)
    for sections in zip(*map(describe, results.values()), strict=True):
        for label in sections[0]:
            table.add_row(label, *(section[label] for section in sections))
        table.add_section()
    Console().print(table)


@dataclass
class Facts:
    """What the checks learn on their way."""

    problems: Dataset | None = None  # those to score, with their place in the file as the column `row`
    functions: list = field(default_factory=list)
    models: dict = field(default_factory=dict)  # of name to Model


def find_problems(args, facts):
    """Yields one line a problem. Fills in `facts`."""
    if min(args.n, args.max_completion_length, args.batch_size, 1 if args.limit is None else args.limit) < 1:
        yield "wanted --n, --max_completion_length, --batch_size and --limit of at least 1"
    if args.temperature < 0 or (args.n > 1 and not args.temperature):
        yield f"--temperature {args.temperature:g} with --n {args.n}: wanted above 0, such as 0.6, or 0 with --n 1"
    if args.backend == "vllm" and not (torch.cuda.is_available() and importlib.util.find_spec("vllm")):
        yield "--backend vllm needs a GPU, and vLLM (pip install -e '.[gpu]'): leave it out"
    yield from data_problems(args, facts)
    for path in args.model if facts.problems else ():
        yield from model_problems(path, args, facts)


def data_problems(args, facts):
    other = "write it with python preprocess.py TASK, or name another with --data"
    try:
        columns, rows = pq.read_schema(args.data).names, pq.read_metadata(args.data).num_rows
    except (OSError, ValueError) as error:
        yield f"{args.data} is no readable parquet file ({error}): {other}"
        return
    names = args.reward_funcs or [name for name, needed in REWARDS.items() if {*needed} <= {*columns}]
    if unknown := {*names} - {*REWARDS}:
        yield f"--reward_funcs names {' and '.join(sorted(unknown))}; there are {', '.join(REWARDS)}"
        return
    lacking = {"prompt"}.union(*(REWARDS[name] for name in names)) - {*columns}
    if lacking or not names or not rows:
        wanted = " and ".join(sorted(lacking)) or (f"what a reward reads: {REWARDS}" if rows else "rows")
        yield f"{args.data} has the columns {columns} and lacks {wanted}; {other}"
        return
    if "code_reward" in names and not args.allow_unsandboxed_code and (why := sandbox.why_unavailable()):
        yield f"code_reward: {why}"
    data = load_dataset("parquet", data_files=args.data, split="train")
    chosen = np.random.default_rng(args.seed).permutation(len(data))[: args.limit]
    data = data.add_column("row", range(len(data))).select(np.sort(chosen))
    golds = data.select_columns([REWARDS[name][0] for name in names]).iter(1024)
    rows = (row for some in golds for row in zip(*some.values(), strict=True))
    if unscored := sum(all(gold is None for gold in row) for row in rows):
        yield f"{unscored:,} of {len(data):,} rows get no reward from {', '.join(names)}: name the one for them too"
    else:
        facts.problems, facts.functions = data, [getattr(rewards, name) for name in names]


def model_problems(path, args, facts):
    try:
        model = read_model(path)
    except (OSError, ValueError, KeyError) as error:
        yield f"model {path} cannot be had ({str(error).splitlines()[0]}): give a folder or a hub id that is there"
        return
    if model.name in facts.models:
        yield f"{facts.models[model.name].path} and {path} would write to one folder: give each its own --output_dir"
    facts.models[model.name] = model
    batches = facts.problems.select_columns("prompt").iter(1024)
    model.longest = max(len(ids) for batch in batches for ids in model.tokenizer(batch["prompt"])["input_ids"])
    if model.longest + args.max_completion_length > model.context:
        yield (
            f"a prompt of {model.longest} tokens and --max_completion_length {args.max_completion_length} exceed the "
            f"context of {path}, {model.context}: give at most {model.context - model.longest}"
        )
    config = Path(args.output_dir, model.name, "config.yaml")
    before = yaml.safe_load(config.read_text()) if config.is_file() else None
    now = find_settings(model, args, facts)
    changed = [f"{key} {before.get(key)}, now {now[key]}" for key in now if before and before.get(key) != now[key]]
    if changed:
        yield f"{config.parent} holds an evaluation with {'; '.join(changed)}: remove it, or name another --output_dir"


def find_settings(model, args, facts):
    """All that the results of a model's evaluation depend on, as a dict."""
    with open(args.data, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    names = ("data", "limit", "seed", "n", "temperature", "max_completion_length", "batch_size", "backend", "dtype")
    given = {name: getattr(args, name) for name in names}
    given["reward_funcs"] = [function.__name__ for function in facts.functions]
    return {"model": model.path, "weights_written": model.written, "data_sha256": digest, **given}


def evaluate(model, args, facts, state):
    """The metrics of a model, once all its completions are there; None but in the first process."""
    folder = Path(args.output_dir, model.name)
    results, path = folder / "metrics.json", folder / "completions.parquet"
    if not results.is_file():
        if state.is_main_process:
            (folder / "parts").mkdir(parents=True, exist_ok=True)
            record.write_config(folder / "config.yaml", find_settings(model, args, facts))
        state.wait_for_everyone()
        numbers = range(math.ceil(len(facts.problems) / args.batch_size))
        parts = [folder / "parts" / f"{number:06}.parquet" for number in numbers]
        generate_missing(model, args, facts, parts, state)
        state.wait_for_everyone()
        if state.is_main_process:
            metrics = summarize(path, args.n, gather(parts, path))
            results.write_text(json.dumps(metrics, indent=2) + "\n")
            shutil.rmtree(folder / "parts")
    return json.loads(results.read_text()) if state.is_main_process else None


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", required=True, help="folders or hub ids; one column each in the table")
    parser.add_argument("--data", required=True, help="file of problems that preprocess.py has written")
    parser.add_argument("--output_dir", default="outputs/evaluations", help="a folder for each model goes here")
    parser.add_argument("--reward_funcs", nargs="+", help="functions of rewards.py; default: those for the columns")
    parser.add_argument("--limit", type=int, help="score so many problems, chosen by the seed; default: all")
    parser.add_argument("--n", type=int, default=1, help="completions of each problem; above 1 for pass@k")
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, is greedy")
    parser.add_argument("--max_completion_length", type=int, default=1024, help="tokens; default 1024")
    parser.add_argument("--batch_size", type=int, help="problems at a time; default 64 / n, with vLLM 1024 / n")
    parser.add_argument("--seed", type=int, default=0, help="of --limit and of sampling")
    parser.add_argument("--backend", choices=("vllm", "transformers"), help="default: vllm where it can run")
    parser.add_argument("--allow_unsandboxed_code", action="store_true", help="run code without bubblewrap")
    args = parser.parse_args(argv)

    # What was left open is decided by the machine, and said
    gpu, vllm = torch.cuda.is_available(), importlib.util.find_spec("vllm") is not None
    args.backend = args.backend or ("vllm" if gpu and vllm else "transformers")
    bf16 = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    args.dtype = "bfloat16" if bf16 else "float16" if gpu else "float32"
    if args.batch_size is None:
        args.batch_size = max(1, (1024 if args.backend == "vllm" else 64) // max(1, args.n))
    sandbox.ALLOW_UNSANDBOXED_CODE = args.allow_unsandboxed_code
    is_main = int(os.environ.get("RANK", 0)) == 0
    facts = Facts()
    try:
        if problems := list(find_problems(args, facts)):
            sys.exit("\n  - ".join(["evaluate.py:", *problems]) if is_main else 1)
        state = PartialState(cpu=not gpu, timeout=timedelta(days=1))  # one process may wait long for another
        if is_main:
            why = "" if gpu and vllm else f" ({'vLLM is not installed' if gpu else 'no GPU found'})"
            print(f"{args.backend} in {args.dtype} on {state.num_processes} x {state.device.type}{why}", flush=True)
        results = {name: evaluate(model, args, facts, state) for name, model in facts.models.items()}
    except KeyboardInterrupt:
        sys.exit("evaluate.py: stopped; what is done stays: the same command goes on from there" if is_main else 1)
    if is_main:
        print_table(results)
        print("completions and metrics in", *(Path(args.output_dir, name) for name in results))


def interrupt_once(*_):
    """Ctrl-C, which launchers follow up with SIGTERM at once: it must not interrupt what the first one started."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    raise KeyboardInterrupt


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt_once)
    main()
