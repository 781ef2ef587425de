"""Score models on held-out problems: accuracy with its interval, pass@k, and how the answers came about.

    python -m r1zero.evaluate --model models/tiny outputs/tiny_cpu --data data/countdown_tiny/test.parquet \\
        --max_completion_length 352
    python -m r1zero.evaluate --model outputs/qwen2.5-1.5b --data data/countdown/test.parquet --n 16 --temperature 0.6
    accelerate launch --config_file configs/accelerate/ddp.yaml -m r1zero.evaluate --model ...  # a share for each GPU

A model is a folder, the folder of a LoRA checkpoint, or a hub id. The data is a file that preprocess.py has written,
or one of your own; its prompts are taken as they are, and rewards.py or your own function scores the completions. vLLM
generates where it and a GPU are there, and transformers elsewhere. Each process that has batches to do has an engine.

Leaves in <output_dir>/<model's name>: completions.parquet (a row for each completion), metrics.json and config.yaml.
Every batch is on disk once it is scored: what was interrupted goes on by the same command, with any number of
processes.
"""

import ctypes
import signal
import sys

if __name__ == "__mp_main__":  # the processes of vLLM's engine import this too, before anything else
    # They end with the evaluation and no sooner: it answers Ctrl-C for them, and its death, even by SIGKILL, ends them
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG

import argparse
import importlib.util
import json
import math
import shutil
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from r1zero import processes
from r1zero.evaluate import metrics as evaluation_metrics
from r1zero.files import NotWritten, replaced
from r1zero.grading.behaviours import BEHAVIOURS, count_behaviours
from r1zero.grading.verdict import CORRECT, NO_ANSWER
from r1zero.report import run_folder
from r1zero.tasks.countdown import cells
from r1zero.tasks.problem_files import chunked
from r1zero.training import reward_functions

# torch, transformers and the modules that need them are imported where they are used: --help answers without them


class Interrupted(BaseException):
    """What Ctrl-C raises: vLLM swallows a KeyboardInterrupt while its engine starts, and then waits for the engine."""


def score(functions, prompts, completions, ids, columns):
    """Return what B completions get, as a dict of columns: reward, correct, answered, and those of the functions.

    functions: dict of a name to its function; ids: B lists of the completions' tokens; columns: dict of the data's
    other columns to B values. If several functions score a row, and none of ours do, their rewards add up, and all
    that judge it must find it right. In a row without a verdict, correct and answered are None.
    """
    rewards = [0.0] * len(completions)
    statuses = [[] for _ in completions]
    table = {}
    for function in functions.values():
        scored = reward_functions.score(function, prompts, completions, columns, ids, log_extra=table.__setitem__)
        for row, (reward, verdict) in enumerate(zip(*scored, strict=True)):
            if reward is not None:
                rewards[row] += reward
                if verdict is not None:
                    statuses[row].append(verdict.status)
    correct = pa.array([set(found) == {CORRECT} if found else None for found in statuses], pa.bool_())
    answered = pa.array([NO_ANSWER not in found if found else None for found in statuses], pa.bool_())
    return {"reward": rewards, "correct": correct, "answered": answered, **table}


def up_to_end(ids, ends):
    """The token ids of a completion up to the first of those that end it."""
    for place, token in enumerate(ids):
        if token in ends:
            return ids[: place + 1]
    return ids


def completion_table(model, args, functions, batch, ids):
    """The table of a batch of B problems (dict of columns), a row a completion. ids: B * n lists of token ids."""
    ids = [up_to_end(row, model.ends) for row in ids]
    completions = model.tokenizer.batch_decode(ids, skip_special_tokens=True)
    columns = {}
    for name, values in batch.items():
        columns[name] = [value for value in values for _ in range(args.n)]
    places, prompts = columns.pop("row"), columns.pop("prompt")
    table = {
        "row": places,
        "data_source": pa.array(columns.get("data_source", [None] * len(ids)), pa.string()),
        "cell": pa.array(cell_names(columns, len(ids)), pa.string()),
        "prompt": prompts,
        "completion": completions,
    }
    table |= score(functions, prompts, completions, ids, columns)
    table["tokens"] = [len(row) for row in ids]
    table["truncated"] = [row[-1] not in model.ends for row in ids]
    counts = [count_behaviours(completion) for completion in completions]
    for name in BEHAVIOURS:
        table[name] = [count[name] for count in counts]
    return pa.table(table)


def cell_names(columns, size):
    """The kind of each Countdown problem, such as "3 numbers, + - alone"; None in rows of another task."""
    if not {"nums", "target"} <= set(columns):
        return [None] * size
    return [cell and ", ".join(cell) for cell in cells(columns["nums"], columns["target"])]


def generate_missing(model, args, exam, parts, state):
    """Generates, scores and writes this process's share of the parts that are not there yet.

    What is sampled depends on the seed and the part alone, so not on interruptions or the number of processes.
    """
    own = parts[state.process_index :: state.num_processes]
    missing = [part for part in own if not part.exists()]
    if not missing:
        return
    from r1zero.evaluate import engines

    engine = engines.vllm_engine if args.backend == "vllm" else engines.transformers_engine
    done = len(own) - len(missing)
    bar = {"initial": done, "total": len(own), "unit": "batch", "disable": not state.is_main_process}
    with engine(model, args, state) as generate:
        for part in tqdm(missing, desc=model.name, **bar):
            number = int(part.stem)
            batch = exam.problems[number * args.batch_size : (number + 1) * args.batch_size]
            seeds = np.random.SeedSequence([args.seed, number]).generate_state(len(batch["prompt"]) * args.n).tolist()
            started = time.monotonic()
            ids = generate(model.tokenizer(batch["prompt"])["input_ids"], seeds)
            seconds = time.monotonic() - started
            table = completion_table(model, args, exam.functions, batch, ids)
            with replaced(part) as unfinished:
                pq.write_table(table.replace_schema_metadata({"seconds": str(seconds)}), unfinished)


def join_parts(parts, path):
    """Joins the parts into one file at `path`, some at a time; returns the seconds that generation took."""
    schemas = [pq.read_schema(part) for part in parts]
    # A column that is empty in a part has no type there
    schema = pa.unify_schemas([schema.remove_metadata() for schema in schemas], promote_options="permissive")
    with replaced(path) as unfinished, pq.ParquetWriter(unfinished, schema) as writer:
        for some in chunked(parts, 16):
            writer.write_table(pa.concat_tables(pq.read_table(part).cast(schema) for part in some))
    return sum(float(schema.metadata[b"seconds"]) for schema in schemas)


def evaluate_model(model, args, exam, state):
    """The metrics of a model, once all its completions are there; None but in the first process."""
    from r1zero.evaluate import checks as evaluation_checks

    folder = Path(args.output_dir, model.name)
    results, completions = folder / "metrics.json", folder / "completions.parquet"
    if not results.is_file():
        if state.is_main_process:
            settings = evaluation_checks.find_settings(model, args, exam.functions)
            run_folder.write_config(folder / "config.yaml", settings)
        state.wait_for_everyone()
        count = math.ceil(len(exam.problems) / args.batch_size)
        parts = [folder / "parts" / f"{number:06}.parquet" for number in range(count)]
        generate_missing(model, args, exam, parts, state)
        state.wait_for_everyone()
        if state.is_main_process:
            seconds = join_parts(parts, completions)
            metrics = evaluation_metrics.measure(completions, args.n, seconds)
            with replaced(results) as unfinished:
                unfinished.write_text(json.dumps(metrics, indent=2) + "\n")
            shutil.rmtree(folder / "parts")
    return json.loads(results.read_text()) if state.is_main_process else None


def parse(argv):
    """The flags, and what they leave open as this machine decides it: backend, dtype and batch_size."""
    parser = argparse.ArgumentParser(
        prog="python -m r1zero.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", nargs="+", required=True, help="folders or hub ids; one column each in the table")
    parser.add_argument("--data", required=True, help="a file of problems, as preprocess.py writes it")
    parser.add_argument("--output_dir", default="outputs/evaluations", help="a folder for each model goes here")
    parser.add_argument(
        "--reward_funcs",
        nargs="+",
        help="functions of rewards.py, or your own as module:function; default: those of rewards.py for the columns",
    )
    parser.add_argument("--limit", type=int, help="score so many problems, chosen by the seed; default: all")
    parser.add_argument("--n", type=int, default=1, help="completions of each problem; above 1 for pass@k")
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, is greedy")
    parser.add_argument("--max_completion_length", type=int, default=1024, help="tokens; default 1024")
    parser.add_argument("--batch_size", type=int, help="problems at a time; default 64 / n, with vLLM 1024 / n")
    parser.add_argument("--seed", type=int, default=0, help="of --limit and of sampling")
    parser.add_argument("--backend", choices=("vllm", "transformers"), help="default: vllm where it and a GPU are")
    parser.add_argument("--use_cpu", action="store_true", help="compute on the CPU, also where there is a GPU")
    parser.add_argument("--allow_unsandboxed_code", action="store_true", help="run code without bubblewrap")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the Python code that a model comes with")
    args = parser.parse_args(argv)
    import torch

    gpu = torch.cuda.is_available() and not args.use_cpu
    args.dtype = "float32"
    if gpu:
        args.dtype = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if args.backend is None:
        args.backend = "vllm" if gpu and importlib.util.find_spec("vllm") else "transformers"
    if args.batch_size is None:
        completions = 1024 if args.backend == "vllm" else 64
        args.batch_size = max(1, completions // max(1, args.n))
    return args


def print_engine(args, problems, state):
    """Says what generates, and why where that is not vLLM on a GPU; and how all of the processes would have work."""
    import torch

    why = ""
    if args.use_cpu:
        why = " (as --use_cpu says)"
    elif not torch.cuda.is_available():
        why = " (no GPU found)"
    elif not importlib.util.find_spec("vllm"):
        why = " (vLLM is not installed)"
    print(f"{args.backend} in {args.dtype} on {state.num_processes} x {state.device.type}{why}", flush=True)
    idle = state.num_processes - math.ceil(problems / args.batch_size)
    if idle > 0:
        share = math.ceil(problems / state.num_processes)
        print(f"{idle} of them without a batch: --batch_size {share} would give each its share", flush=True)


def main(argv=None):
    args = parse(argv)
    is_main = processes.is_main_process()
    try:
        import torch
        from accelerate import PartialState

        from r1zero.evaluate import checks as evaluation_checks

        cpu = args.use_cpu or not torch.cuda.is_available()
        if cpu:
            processes.take_threads()
        exam, errors = evaluation_checks.check(args)
        if errors:
            sys.exit("\n  - ".join(["r1zero.evaluate:", *errors]) if processes.is_first_here() else 1)
        # One process may wait long for another
        state = PartialState(cpu=cpu, timeout=timedelta(days=1))
        if is_main:
            print_engine(args, len(exam.problems), state)
        results = {}
        for name, model in exam.models.items():
            results[name] = evaluate_model(model, args, exam, state)
    except (KeyboardInterrupt, Interrupted):
        stopped = "r1zero.evaluate: stopped; what is done stays: the same command goes on from there"
        sys.exit(stopped if is_main else 1)
    except NotWritten as error:
        sys.exit(f"r1zero.evaluate: {error}; what is done stays: the same command goes on from there")
    if is_main:
        evaluation_metrics.print_table(results)
        print("completions and metrics in", *(Path(args.output_dir, name) for name in results))


def interrupt_once(*_):
    """Ctrl-C, which launchers follow up with SIGTERM at once: it must not interrupt what the first one started."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    raise Interrupted
