"""Show where the time of training goes, part by part, beside TRL's defaults and beside the least that each part needs.

    python benchmarks/step.py --model outputs/tiny_cpu                   # the recipe for this machine, this model
    python benchmarks/step.py --config configs/qwen2.5-3b.yaml --beta 0.001 --generations 3
    python benchmarks/step.py --model FOLDER --data data/countdown/test.parquet --rounds 3

Each version trains by train_countdown.py in a process of its own, with every number of the recipe and every flag given
here, on the prompts of --data; the completions are the model's own. The versions alternate: ours, and TRL's defaults,
which compute padding and completions that have ended. Times are means over generations, that is, the completions of
one rollout with all their optimizer steps; the first generation of each run is a warm-up. Each run measures one
evaluation, which counts as often as the recipe evaluates. Nothing is saved.

The run logs its phases (r1zero/training/phases.py). Scoring is the old and the reference log-probabilities;
backward includes clipping. A floor is the least time of a part: its operations over the measured rate of matrix
products, or its bytes over the measured bandwidth, whichever takes longer. A forward pass has 2 operations a parameter
and real token; attention, padding and what is computed again count nothing. MFU is the floor of one forward and
backward pass over the whole time. OUTPUT_DIR/step.json has all of it.
"""

import argparse
import dataclasses
import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean, stdev

import torch
import yaml
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback, trainer
from trl import GRPOConfig, ModelConfig

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from r1zero import schedule  # noqa: E402
from r1zero.estimate import hours, memory  # noqa: E402
from r1zero.training import phases  # noqa: E402

VERSIONS = {
    "ours": ["--trim_padding", "true", "--drop_finished", "true"],
    "TRL's defaults": ["--trim_padding", "false", "--drop_finished", "false"],
}
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}  # of all threads
PARTS = (*phases.PHASES[:-1], "evaluation")
CUDA = torch.cuda.is_available()


def read_arguments(argv=None):
    """Return the arguments, and the words (list) of argv that are for train_countdown.py."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", type=Path, help="a folder; default: the recipe's model")
    parser.add_argument("--data", type=Path, help="a folder, or one .parquet for both splits; default: the recipe's")
    parser.add_argument("--generations", type=int, default=4, help="of a run, after the one that warms up")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each version")
    parser.add_argument("--time", choices=CLOCKS, default="wall", help="processor: steadier on a CPU that is shared")
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=list(VERSIONS))
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/step"))
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)  # train once, and write the result here
    return parser.parse_known_args(argv)


class LastStep(TrainerCallback):
    """Ends the run after 1 + `generations` of them, with an evaluation if the recipe evaluates."""

    def __init__(self, generations):
        self.generations = generations

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == (1 + self.generations) * max(1, int(schedule.span(args))):
            control.should_training_stop = True
            control.should_evaluate = schedule.evaluates(args)


def exact_clock(clock):
    """Return a clock that waits for the GPU."""

    def now():
        if CUDA:
            torch.cuda.synchronize()
        return clock()

    return now


def generations_of(history, span):
    """Return a dict a generation but the first, which warms up: seconds of PARTS and the `whole`, tokens, lengths.

    history: what Trainer logged, with logging_steps 1; span: optimizer steps of a generation.
    """
    steps = [entry for entry in history if "profiling/step" in entry]
    evaluation = sum(entry.get("eval_runtime", 0) for entry in history)
    found, tokens_before = [], 0
    for first in range(0, len(steps), span):
        window = steps[first : first + span]
        seconds = {part: sum(step.get(f"profiling/{part}", 0) for step in window) for part in PARTS}
        lengths = {name: window[0][f"completions/{name}_length"] for name in ("mean", "max")}
        tokens = window[0]["num_tokens"] - tokens_before
        tokens_before = window[0]["num_tokens"]
        whole = sum(step["profiling/step"] for step in window)
        found.append({**seconds, "whole": whole, "tokens": tokens, "lengths": lengths})
    found[-1]["evaluation"] = evaluation
    return found[1:]


def measure_machine(config, dtype):
    """Return what this machine does in a second at most: `operations` of matrix products, and `bytes` copied.

    config: the model's, whose widths are tried beside a large product; dtype: the torch.dtype of the run's products.
    """
    device, size, numbers = ("cuda", 8192, 2**28) if CUDA else ("cpu", 512, 2**26)

    def fastest(function):
        best, end = float("inf"), time.perf_counter() + 0.5
        while time.perf_counter() < end:
            began = time.perf_counter()
            function()
            if CUDA:
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - began)
        return best

    source = torch.ones(numbers, device=device)
    target = torch.empty_like(source)
    rates = []
    for rows, inner, columns in ((size, size, size), (4096, config.hidden_size, config.intermediate_size)):
        left = torch.randn(rows, inner, dtype=dtype, device=device)
        right = torch.randn(inner, columns, dtype=dtype, device=device)
        result = torch.empty(rows, columns, dtype=dtype, device=device)
        seconds = fastest(lambda left=left, right=right, result=result: torch.mm(left, right, out=result))
        rates.append(2 * rows * inner * columns / seconds)
    return {"operations": max(rates), "bytes": 2 * source.nbytes / fastest(lambda: target.copy_(source))}


def floors(able, model, values, completions, window):
    """Return the least seconds (dict) of the parts that have a floor.

    able: of measure_machine; model: without LoRA, on any device; values: every setting; completions: of a generation;
    window: of generations_of.
    """
    trained = memory.trained_parameters(model, values)
    loaded = 2 if str(values.dtype) in ("bfloat16", "float16") else 4  # bytes of a number
    computed = 2 if schedule.mixed_precision(values) else loaded
    tokens = completions * window["lengths"]["mean"]
    least = hours.floors(
        able, values, model, window["tokens"] - tokens, tokens, window["lengths"]["max"], values.num_generations
    )
    if values.use_vllm:
        least["weight sync"] = model.num_parameters() * (loaded + computed) / able["bytes"]
    if str(values.optim).startswith("adamw_torch"):  # it reads and writes weight and moments, and reads the gradient
        moved = 7 * trained * (4 if values.use_peft else loaded)
        least["optimizer"] = max(1, int(schedule.span(values))) * moved / able["bytes"]
    return {part: seconds for part, seconds in least.items() if seconds}


def run_one(args, words):
    """Train once in this process, and write what was measured to args.one. words: flags of train_countdown.py."""
    phases.now = exact_clock(CLOCKS[args.time])
    trainer.DEFAULT_CALLBACKS.append(LastStep(args.generations))
    sys.argv = ["train_countdown.py", *words, "--output_dir", str(args.output_dir / "run")]
    script = runpy.run_path(str(ROOT / "train_countdown.py"), run_name="__main__")

    # config.yaml has every setting of the run, except those that are None
    classes = (script["ScriptArguments"], GRPOConfig, ModelConfig)
    names = [field.name for arguments in classes for field in dataclasses.fields(arguments)]
    settings = yaml.safe_load((args.output_dir / "run" / "config.yaml").read_text())
    values = argparse.Namespace(**dict.fromkeys(names) | settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(values.model_name_or_path))
    types = {"bf16": torch.bfloat16, "fp16": torch.float16, None: torch.float32}
    able = measure_machine(model.config.get_text_config(), types[schedule.mixed_precision(values)])
    completions = schedule.schedule(values, None, 1)["completions"]
    history = json.loads((args.output_dir / "run" / "trainer_state.json").read_text())["log_history"]
    windows = generations_of(history, max(1, int(schedule.span(values))))
    for window in windows:
        window["floors"] = floors(able, model, values, completions, window)
    result = {
        "device": torch.cuda.get_device_name(0) if CUDA else f"{torch.get_num_threads()} threads of a CPU",
        "machine": able,
        "completions": completions,
        "windows": windows,
        "evaluations": schedule.span(values) / values.eval_steps if schedule.evaluates(values) else 0,
    }
    peaks = json.loads((args.output_dir / "run" / "metrics.json").read_text())["extremes"]
    if "memory/card" in peaks:
        result |= {"peak GiB": peaks["memory/card"], "estimated GiB": peaks["memory/estimated"]}
    args.one.write_text(json.dumps(result))


def summarise(runs):
    """Return the mean generation of a version, as a dict. runs: list of what run_one writes."""
    windows = [window for run in runs for window in run["windows"]]
    seconds = {part: fmean(window[part] for window in windows) for part in PARTS}
    whole = [window["whole"] for window in windows]  # without evaluations
    one_evaluation = fmean(sum(window["evaluation"] for window in run["windows"]) for run in runs)
    seconds["evaluation"] = 0
    seconds["everything else"] = fmean(whole) - sum(seconds.values())
    seconds["evaluation"] = one_evaluation * runs[0]["evaluations"]
    least = {part: fmean(window["floors"][part] for window in windows) for part in windows[0]["floors"]}
    total = sum(seconds.values())
    length = fmean(window["lengths"]["mean"] for window in windows)
    return {
        "seconds": seconds,
        "floors": least,
        "total": total,
        "spread": stdev(whole) if len(windows) > 1 else 0.0,
        "generations": len(windows),
        "one evaluation": one_evaluation,
        "mean length": length,
        "longest": max(window["lengths"]["max"] for window in windows),
        "completion tokens/s": runs[0]["completions"] * length / total,
        "MFU": (least["forward"] + least["backward"]) / total,
        "peak GiB": max(run.get("peak GiB", 0) for run in runs),
        "estimated GiB": runs[0].get("estimated GiB", 0),
    }


def show(result):
    """Print the parts of a generation, one a line, and what it was made of. result: as in step.json."""
    (first, ours), *others = result["versions"].items()
    table = Table(title=f"one generation of {result['completions']} completions; {result['device']}")
    heads = [f"{first}, s", "%", "floor, s", "times the floor"]
    for other, _ in others:
        heads += [f"{other}, s", "times ours"]
    table.add_column("part")
    for head in heads:
        table.add_column(head, justify="right")
    parts = [part for part, seconds in ours["seconds"].items() if seconds]
    for part in (*parts, "the whole"):
        seconds, least = ours["seconds"].get(part, ours["total"]), ours["floors"].get(part)
        cells = [f"{seconds:.3g}", f"{100 * seconds / ours['total']:.1f}"]
        cells += [f"{least:.3g}", f"{seconds / least:.1f}"] if least else ["", ""]
        for _, other in others:
            theirs = other["seconds"].get(part, other["total"])
            cells += [f"{theirs:.3g}", f"{theirs / seconds:.2f}"]
        table.add_row(part, *cells, end_section=part == parts[-1])
    Console(width=119).print(table)
    able = result["machine"]
    print(
        f"measured here: {able['operations'] / 1e9:,.4g} GFLOP/s in products, {able['bytes'] / 1e9:,.3g} GB/s copied"
    )
    for version, found in result["versions"].items():
        line = (
            f"{version}: {found['total']:.3g} s, ± {found['spread']:.2g} over {found['generations']} generations, "
            f"completions of {found['mean length']:.0f} tokens, at most {found['longest']:.0f}; "
            f"{found['completion tokens/s']:,.0f} tokens/s; MFU {100 * found['MFU']:.1f} %; "
            f"one evaluation {found['one evaluation']:.3g} s"
        )
        if found["peak GiB"]:
            line += f"; {found['peak GiB']:.1f} GiB at the peak, estimated {found['estimated GiB']:.1f}"
        print(line)


def main():
    args, words = read_arguments()
    if args.one:
        run_one(args, words)
        return
    folder = args.output_dir.resolve()  # the runs work in the project's folder
    folder.mkdir(parents=True, exist_ok=True)
    data = args.data and args.data.resolve()
    if data and data.is_file():
        (folder / "data").mkdir(exist_ok=True)
        for split in ("train", "test"):
            shutil.copyfile(data, folder / "data" / f"{split}.parquet")
        data = folder / "data"
    if args.model:
        words += ["--model_name_or_path", args.model.resolve()]
    if data:
        words += ["--data_dir", data]
    words += ["--save_strategy", "no", "--eval_on_start", "false", "--logging_steps", 1, "--report_to", "none"]
    runs = {version: [] for version in args.versions}
    for number in range(args.rounds):
        for version in runs:
            shutil.rmtree(folder / "run", ignore_errors=True)
            command = [sys.executable, __file__, "--one", folder / f"{version} {number}.json", "--output_dir", folder]
            command += ["--generations", args.generations, "--time", args.time, *words, *VERSIONS[version]]
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            if subprocess.run([str(word) for word in command], cwd=ROOT, env=environment).returncode:
                sys.exit(f"a run of {version} failed; its own message is above")
            runs[version].append(json.loads((folder / f"{version} {number}.json").read_text()))
    first = runs[args.versions[0]][0]
    result = {name: first[name] for name in ("device", "completions", "machine")}
    result["versions"] = {version: summarise(found) for version, found in runs.items()}
    (folder / "step.json").write_text(json.dumps(result | {"runs": runs}, indent=1) + "\n")
    show(result)


if __name__ == "__main__":
    main()
