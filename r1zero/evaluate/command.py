"""Score models on held-out problems: accuracy with its interval, pass@k, and how the answers came about.

    python -m r1zero.evaluate --model models/tiny outputs/tiny_cpu --data data/countdown_tiny/test.parquet \\
        --max_completion_length 352
    python -m r1zero.evaluate --model outputs/qwen2.5-1.5b --data data/countdown/test.parquet --n 16 --temperature 0.6
    accelerate launch --config_file configs/accelerate/ddp.yaml -m r1zero.evaluate --model ...  # a share for each GPU

A model is a folder, the folder of a LoRA checkpoint, or a hub id. The data is a file that preprocess.py has written,
or one of your own. Its prompts are taken as they are. rewards.py or your own function scores the completions. vLLM
generates if it and a GPU are there, otherwise transformers. Each process that has batches to do has an engine.

Writes to <output_dir>/<model's name>: completions.parquet (a row for each completion), metrics.json and config.yaml.
Every batch is on disk once it is scored. The same command resumes an interrupted evaluation, with any number of
processes.
"""

import argparse
import importlib.util
import json
import math
import shutil
import signal
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from r1zero import processes
from r1zero.evaluate.metrics import measure, print_table
from r1zero.files import NotWritten, replaced
from r1zero.grading.behaviours import BEHAVIOURS, count_behaviours
from r1zero.grading.verdict import CORRECT, NO_ANSWER
from r1zero.report.run_folder import write_config
from r1zero.tasks.countdown import cells
from r1zero.training import reward_functions

# torch, transformers and the modules that need them are imported inside the functions: --help answers without them

RESUME = "what is done stays: the same command goes on from there"


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
    """Return the token ids of a completion up to the first that ends it."""
    for place, token in enumerate(ids):
        if token in ends:
            return ids[: place + 1]
    return ids


def completion_table(model, args, functions, batch, ids):
    """Return the table of a batch of B problems (dict of columns), a row for each of the B * n lists of token ids."""
    ids = [up_to_end(row, model.ends) for row in ids]
    completions = model.tokenizer.batch_decode(ids, skip_special_tokens=True)
    columns = {}
    for name, values in batch.items():
        columns[name] = [value for value in values for _ in range(args.n)]
    places, prompts = columns.pop("row"), columns.pop("prompt")
    kinds = nothing = [None] * len(ids)
    if "countdown_reward" in functions:  # None in rows of another task
        kinds = [cell and ", ".join(cell) for cell in cells(columns["nums"], columns["target"])]
    table = {
        "row": places,
        "data_source": pa.array(columns.get("data_source", nothing), pa.string()),
        "cell": pa.array(kinds, pa.string()),
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


def generate_missing(model, args, exam, parts, state):
    """Generate, score and write this process's share of the missing parts.

    The samples depend on the seed and the part alone, not on interruptions or the number of processes.
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
            ids = generate(model.tokenizer(batch["prompt"])["input_ids"], seeds)
            table = completion_table(model, args, exam.functions, batch, ids)
            with replaced(part) as unfinished:
                pq.write_table(table, unfinished)


def evaluate_model(model, args, exam, state):
    """Return the metrics of a model once all its completions are there, in the main process. Others return None."""
    from r1zero.evaluate.checks import find_settings

    folder = Path(args.output_dir, model.name)
    results, completions = folder / "metrics.json", folder / "completions.parquet"
    if not results.is_file():
        if state.is_main_process:
            write_config(folder / "config.yaml", find_settings(model, args, exam.functions))
        state.wait_for_everyone()
        count = math.ceil(len(exam.problems) / args.batch_size)
        parts = [folder / "parts" / f"{number:06}.parquet" for number in range(count)]
        generate_missing(model, args, exam, parts, state)
        state.wait_for_everyone()
        if state.is_main_process:
            tables = [pq.read_table(part) for part in parts]
            with replaced(completions) as unfinished:  # permissive: a column without values in a part has no type
                pq.write_table(pa.concat_tables(tables, promote_options="permissive"), unfinished)
            metrics = measure(completions, args.n)
            with replaced(results) as unfinished:
                unfinished.write_text(json.dumps(metrics, indent=2) + "\n")
            shutil.rmtree(folder / "parts")
    return json.loads(results.read_text()) if state.is_main_process else None


def parse(argv):
    """Return the flags. This machine decides those that are left open: backend, dtype and batch_size."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m r1zero.evaluate", description=__doc__, formatter_class=form, allow_abbrev=False
    )
    parser.add_argument("--model", nargs="+", required=True, help="folders or hub ids; one column each in the table")
    parser.add_argument("--data", required=True, help="a file of problems, as preprocess.py writes it")
    parser.add_argument("--output_dir", default="outputs/evaluations", help="a folder for each model goes here")
    parser.add_argument(
        "--reward_funcs",
        nargs="+",
        help="functions of rewards.py, or your own as module:function; default: those of rewards.py for the columns",
    )
    parser.add_argument("--limit", type=at_least(1), help="score so many problems, chosen by the seed; default: all")
    parser.add_argument("--n", type=at_least(1), default=1, help="completions of each problem; above 1 for pass@k")
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, is greedy")
    parser.add_argument("--max_completion_length", type=at_least(1), default=1024, help="tokens; default 1024")
    parser.add_argument("--batch_size", type=at_least(1), help="problems at once; default 64 / n, with vLLM 1024 / n")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of --limit and of sampling")
    parser.add_argument("--backend", choices=("vllm", "transformers"), help="default: vllm if it and a GPU are there")
    parser.add_argument("--use_cpu", action="store_true", help="compute on the CPU, even if there is a GPU")
    parser.add_argument("--allow_unsandboxed_code", action="store_true", help="run code without bubblewrap")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the Python code that a model comes with")
    args = parser.parse_args(argv)
    if not 0 <= args.temperature < math.inf or (args.n > 1 and not args.temperature):
        found = f"--temperature {args.temperature:g} with --n {args.n}"
        parser.error(f"{found}: wanted above 0, such as 0.6, or 0 with --n 1")
    import torch

    gpu = torch.cuda.is_available() and not args.use_cpu
    args.dtype = "float32"
    if gpu:
        args.dtype = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if args.backend is None:
        args.backend = "vllm" if gpu and importlib.util.find_spec("vllm") else "transformers"
    if args.batch_size is None:
        completions = 1024 if args.backend == "vllm" else 64
        args.batch_size = max(1, completions // args.n)
    return args


def at_least(lowest):
    """Return the type of a flag, for argparse: whole numbers from `lowest` on."""

    def number(text):
        if int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{text}, wanted at least {lowest}")
        return int(text)

    return number


def print_engine(args, problems, state):
    """Print what generates, and the batch size that would give every process work."""
    device = state.device.type
    hint = " (vLLM is not installed)" if device == "cuda" and not importlib.util.find_spec("vllm") else ""
    print(f"{args.backend} in {args.dtype} on {state.num_processes} x {device}{hint}", flush=True)
    idle = state.num_processes - math.ceil(problems / args.batch_size)
    if idle > 0:
        share = math.ceil(problems / state.num_processes)
        print(f"{idle} of them without a batch: --batch_size {share} would give each its share", flush=True)


def main(argv=None):
    args = parse(argv)
    is_main = processes.is_main_process()
    import torch
    from accelerate import PartialState

    from r1zero.evaluate.checks import check

    cpu = args.use_cpu or not torch.cuda.is_available()
    if cpu:
        processes.take_threads()
    exam, errors = check(args)
    if errors:
        sys.exit("\n  - ".join(["r1zero.evaluate:", *errors]) if processes.is_first_here() else 1)
    state = PartialState(cpu=cpu, timeout=timedelta(days=1))  # one process may wait long for another
    if is_main:
        print_engine(args, len(exam.problems), state)
    results = {}
    try:
        for name, model in exam.models.items():
            results[name] = evaluate_model(model, args, exam, state)
    except (NotWritten, ChildProcessError) as error:
        sys.exit(f"r1zero.evaluate: {error}; {RESUME}")
    if is_main:
        print_table(results)
        print("completions and metrics in", *(Path(args.output_dir, name) for name in results))


def stop(*_):
    """Answer Ctrl-C or SIGTERM: leave what runs, in order. Launchers send a second signal at once."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(f"r1zero.evaluate: stopped; {RESUME}" if processes.is_main_process() else 1)
