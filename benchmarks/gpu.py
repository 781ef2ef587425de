"""What a training step costs on this machine, for the shapes of Qwen2.5 with random weights: time, memory, use.

    python benchmarks/gpu.py --shapes 0.5B 1.5B 3B 7B --methods full lora

Each row is a run of train_countdown.py of its own, with the settings of configs/qwen2.5-1.5b.yaml but few completions,
with vLLM where it is installed and with transformers otherwise. Completions of random weights run to their full
length, which is the worst case. The first step of a run is left out. Prints a table, in which the peak of memory, of
whatever is on the card, stands beside the estimate of r1zero/memory.py, and writes OUTPUT/gpu.json.

MFU is the utilisation of the card as TRL computes it: the operations of one forward and one backward pass over the
completions, with all weights trained, over what the card could do in the time of the whole step. Generation, the pass
for the old log-probabilities and what is computed again in the update take time, and do not count as operations.
"""

import argparse
import contextlib
import importlib.util
import json
import runpy
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Qwen2ForCausalLM,
    TrainerCallback,
    trainer,
)
from trl import GRPOConfig, ModelConfig, TrlParser
from trl.extras import profiling
from trl.trainer import grpo_trainer
from trl.trainer.utils import compute_flops_per_token, compute_mfu, get_peak_flops

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import preprocess  # noqa: E402
from r1zero import ROOT, machine, memory, model_shapes  # noqa: E402
from r1zero.tiny_model import build_tokenizer  # noqa: E402
from train_countdown import ScriptArguments  # noqa: E402

SHAPES = {size: model_shapes.SHAPES[f"Qwen2.5-{size}"] for size in ("0.5B", "1.5B", "3B", "7B")}
SHAPES["tiny"] = model_shapes.Shape(64, 2, 4, 2, 128, 512, True, 4096)  # for a try without a GPU
PHASES = {  # what TRL's profile names, and the part of a step that it belongs to
    "vLLM.generate": "generation",
    "transformers.generate": "generation",
    "_get_per_token_logps_and_entropies": "log-probabilities",
    "sync_weights": "weight sync",
}


def make_model(shape, folder):
    """A model folder with random bfloat16 weights of this shape, and the tiny model's tokenizer."""
    config = SHAPES[shape].config(max_position_embeddings=4096, dtype="bfloat16")
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2ForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    del model
    torch.cuda.empty_cache()  # what this process holds would count as the run's


class Clock(TrainerCallback):
    """Takes the seconds of each step and of its phases, and the peak of memory, and writes them to `path`."""

    def __init__(self, path):
        self.path = Path(path)
        self.steps = []  # a dict each
        self.peak_bytes = 0  # of the card, whoever uses it

    @contextlib.contextmanager
    def profiling_context(self, trainer, name):
        """Stands for TRL's function of this name, which tells the time to trackers alone."""
        started = time.perf_counter()
        yield
        if self.steps and name in PHASES:
            self.steps[-1][PHASES[name]] += time.perf_counter() - started

    def watch_memory(self):
        while True:
            free, total = torch.cuda.mem_get_info()
            self.peak_bytes = max(self.peak_bytes, total - free)
            time.sleep(0.02)

    def on_step_begin(self, args, state, control, **kwargs):
        self.steps.append(dict.fromkeys(PHASES.values(), 0.0))
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.steps[-1]["seconds"] = time.perf_counter() - self.started

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "completions/mean_length" in logs:
            self.steps[-1]["length"] = logs["completions/mean_length"]

    def on_train_end(self, args, state, control, **kwargs):
        self.path.write_text(json.dumps({"steps": self.steps, "peak_bytes": self.peak_bytes}))


def measure(path, flags):
    """Runs train_countdown.py in this process with a Clock that writes to `path`."""
    clock = Clock(path)
    if torch.cuda.is_available():
        threading.Thread(target=clock.watch_memory, daemon=True).start()
    for module in (profiling, grpo_trainer):
        module.profiling_context = clock.profiling_context
    trainer.DEFAULT_CALLBACKS.append(clock)
    sys.argv = ["train_countdown.py", *flags]
    runpy.run_path(str(ROOT / "train_countdown.py"), run_name="__main__")


def estimate(flags, data):
    """The GiB at the peak of a run that r1zero/memory.py expects. flags: list[str]; data: Path of its problems."""
    values = machine.read_recipe(TrlParser((ScriptArguments, GRPOConfig, ModelConfig)), flags).values
    tokenizer = AutoTokenizer.from_pretrained(values.model_name_or_path)
    longest = 0
    for split in ("train", "test"):
        prompts = pq.read_table(data / f"{split}.parquet", columns=["prompt"])["prompt"].to_pylist()
        longest = max(longest, *(len(ids) for ids in tokenizer(prompts)["input_ids"]))
    card = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    tokens = longest + values.max_completion_length
    model = meta_model(values.model_name_or_path)
    peaks = memory.memory(values, model, machine.read_strategy({}), tokens, card)["peaks"]
    return max(peaks.values()) / memory.GIB


def meta_model(path):
    """The model of a folder without its weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))


def utilisation(config, length, tokens_per_second, card):
    """TRL's MFU in percent, None where it does not know the card. length: mean tokens of a completion."""
    peak = get_peak_flops(card, "bfloat16")
    if peak is None:
        return None
    return compute_mfu(compute_flops_per_token(config, length), tokens_per_second, 1, peak)


def means(result, completions, config, card):
    """Part of a row of the table: means over all steps but the first. result: what a Clock has written."""
    steps = result["steps"][1:] or result["steps"]
    mean = {}
    for key in steps[-1]:
        mean[key] = sum(step[key] for step in steps) / len(steps)
    phases = {phase: mean[phase] for phase in PHASES.values()}
    tokens_per_second = completions * mean["length"] / mean["seconds"]  # prompts are short here
    return {
        "steps": len(steps),
        "seconds": mean["seconds"],
        **phases,
        "update": mean["seconds"] - sum(phases.values()),
        "completion tokens/s": tokens_per_second,
        "MFU %": utilisation(config, mean["length"], tokens_per_second, card),
        "peak GiB": result["peak_bytes"] / memory.GIB or None,
    }


def run_flags(shape, method, folder, args, vllm):
    """The flags of train_countdown.py for a shape and a method, as list[str]."""
    cuda = torch.cuda.is_available()
    batch = min(8, args.completions)
    flags = {
        "config": ROOT / "configs" / "qwen2.5-1.5b.yaml",
        "model_name_or_path": folder / f"model-{shape}",
        "data_dir": folder / "data",
        "output_dir": folder / f"run-{shape}-{method}",
        "max_steps": args.steps,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": args.completions // batch,
        "max_completion_length": args.max_completion_length,
        "beta": 0.0,
        "use_vllm": vllm,
        "vllm_gpu_memory_utilization": 0.3,  # the recipe's leaves too little to the larger shapes
        "use_cpu": not cuda,
        "bf16": cuda,
        "eval_strategy": "no",
        "eval_on_start": False,
        "save_strategy": "no",
        "log_completions": False,
    }
    if method == "lora":
        flags |= {"use_peft": True, "lora_r": 32, "lora_target_modules": "all-linear", "lora_dropout": 0}
        flags["dtype"] = "bfloat16"
    return [word for key, value in flags.items() for word in (f"--{key}", str(value))]


def run(shape, method, folder, args, vllm, card):
    """A row of the table, from a run of its own."""
    row = {"shape": shape, "method": method}
    flags = run_flags(shape, method, folder, args, vllm)
    path = folder / f"{shape}-{method}.json"
    path.unlink(missing_ok=True)
    status = subprocess.run([sys.executable, __file__, "--measure", str(path), *flags], cwd=ROOT).returncode
    if status or not path.exists():
        return row | {"failed": f"exit status {status}"}
    model = meta_model(folder / f"model-{shape}")
    row["parameters"] = model.num_parameters()
    row |= means(json.loads(path.read_text()), args.completions, model.config, card)
    return row | {"estimated GiB": estimate(flags, folder / "data")}


def print_table(rows, title):
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*columns, title=title)
    for row in rows:
        cells = [row.get(column, "") for column in columns]
        table.add_row(*(f"{cell:,.3g}" if isinstance(cell, float) else str(cell or "") for cell in cells))
    Console(width=200).print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["0.5B", "1.5B", "3B", "7B"])
    parser.add_argument("--methods", nargs="+", choices=("full", "lora"), default=["full", "lora"])
    parser.add_argument("--steps", type=int, default=4, help="of the optimizer in a run; the first does not count")
    parser.add_argument("--completions", type=int, default=64, help="completions a step")
    parser.add_argument("--max_completion_length", type=int, default=1024, help="tokens")
    parser.add_argument("--generation", choices=("vllm", "transformers"), help="default: vLLM where it is installed")
    parser.add_argument("--output_dir", default="outputs/gpu")
    args = parser.parse_args()

    cuda = torch.cuda.is_available()
    card = torch.cuda.get_device_name(0) if cuda else "no GPU"
    vllm = args.generation == "vllm"
    if args.generation is None:
        vllm = cuda and importlib.util.find_spec("vllm") is not None
    folder = Path(args.output_dir).resolve()  # the runs work in the project's folder
    preprocess.main(["countdown", "--train_size", "1024", "--test_size", "64", "--local_dir", str(folder / "data")])
    rows = []
    for shape in args.shapes:
        if not (folder / f"model-{shape}" / "config.json").exists():
            make_model(shape, folder / f"model-{shape}")
        for method in args.methods:
            rows.append(run(shape, method, folder, args, vllm, card))
    report = {"card": card, "vllm": vllm, "completions": args.completions, "rows": rows}
    (folder / "gpu.json").write_text(json.dumps(report, indent=2) + "\n")
    engine = "vLLM" if vllm else "transformers"
    print_table(rows, f"{card}, {engine}, {args.completions} completions a step")
    if all("failed" in row for row in rows):
        sys.exit("no run came to its end; its own message is above")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], sys.argv[3:])
    else:
        main()
