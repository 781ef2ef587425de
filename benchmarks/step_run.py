"""One run of train_countdown.py under a clock, in a process of its own: benchmarks/step.py starts it.

python benchmarks/step_run.py RESULT.json FOLDER [--shape ...] [flags of train_countdown.py]
"""

import argparse
import importlib.util
import json
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import torch
from transformers import AutoConfig, AutoTokenizer
from trl import GRPOConfig, ModelConfig, TrlParser
from trl.trainer.utils import get_peak_flops

import train_countdown
from benchmarks import random_model, step_floors
from benchmarks.step_clock import Clock
from r1zero import schedule
from r1zero.estimate import memory, model_shapes
from r1zero.preflight import check as checks
from r1zero.preflight import recipe
from r1zero.preflight.machine import Machine, read_strategy
from r1zero.preflight.model import without_weights

MEAN_SHARE = 0.4  # of max_completion_length: the mean of completions by random weights
LORA = {"use_peft": True, "lora_r": 32, "lora_target_modules": "all-linear", "lora_dropout": 0, "dtype": "bfloat16"}
METHODS = {"recipe": {}, "full": {"use_peft": False}, "lora": LORA}


def as_words(flags):
    """A dict of flags as the words of a command."""
    words = []
    for name, value in flags.items():
        words += [f"--{name}", str(value)]
    return words


def read_arguments():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("result", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--config")
    parser.add_argument("--shape")
    parser.add_argument("--method", choices=METHODS, default="recipe")
    parser.add_argument("--model")
    parser.add_argument("--mean_length", type=float)
    parser.add_argument("--generations", type=int, default=4)
    return parser.parse_known_args()


def machine_flags(values):
    """What of a recipe cannot be had on this machine, as a dict of flags. values: the recipe's."""
    cuda = torch.cuda.is_available()
    flags = {"use_vllm": values.use_vllm and cuda and importlib.util.find_spec("vllm") is not None}
    if not cuda:
        flags |= {"use_cpu": True, "bf16": False, "fp16": False}
    return flags


def prepare(args, values):
    """The shape (str), and the folders of the model and of the data, which are made where they are missing."""
    shape = args.shape or Path(values.model_name_or_path).name
    if shape != random_model.TINY and f"Qwen2.5-{shape}" in model_shapes.SHAPES:
        shape = f"Qwen2.5-{shape}"
    data = args.folder / f"data-{'tiny' if shape == random_model.TINY else 'countdown'}"
    if not (data / "test.parquet").exists():
        random_model.make_data(shape, data)
    if args.model:
        return Path(args.model).name, Path(args.model).resolve(), data
    mean = args.mean_length or MEAN_SHARE * values.max_completion_length
    chance = random_model.chance_of_the_end(mean, values.max_completion_length)
    folder = args.folder / f"model-{shape}-{chance:.5f}"
    if not (folder / "config.json").exists():
        random_model.make_model(shape, folder, chance)
    return shape, folder, data


def run_flags(args, values, model, data):
    """What the benchmark sets beside the recipe, as a dict of flags."""
    steps = (args.generations + 1) * max(1, int(schedule.span(values)))  # the first generation warms up
    flags = {
        "model_name_or_path": model,
        "data_dir": data,
        "max_steps": steps,
        "save_strategy": "no",
        "eval_on_start": False,
    }
    if schedule.evaluates(values):
        flags |= {"eval_strategy": "steps", "eval_steps": steps}
    return flags


def estimate(values):
    """The bytes at the peak of a run that r1zero/estimate/memory.py expects."""
    tokenizer = AutoTokenizer.from_pretrained(values.model_name_or_path)
    longest = 0
    for split in ("train", "test"):
        prompts = pq.read_table(f"{values.data_dir}/{split}.parquet", columns=["prompt"])["prompt"].to_pylist()
        longest = max(longest, *(len(ids) for ids in tokenizer(prompts)["input_ids"]))
    card = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    model = without_weights(AutoConfig.from_pretrained(values.model_name_or_path))
    tokens = longest + values.max_completion_length
    return max(memory.memory(values, model, read_strategy({}), tokens, card)["peaks"].values())


def arithmetic_type(values):
    """The torch.dtype that the run's matrices are multiplied in."""
    types = {"bf16": torch.bfloat16, "fp16": torch.float16, None: torch.float32}
    return types[schedule.mixed_precision(values)]


def published_rate(values):
    """Operations a second that the card's maker promises, None where TRL does not know them."""
    if not torch.cuda.is_available():
        return None
    return get_peak_flops(torch.cuda.get_device_name(0), str(arithmetic_type(values)).removeprefix("torch."))


def describe_window(window, work):
    """A step_clock.Window for the result: its parts, what they have to do at least, and what it was made of."""
    lengths, scored = window.rows("forward")
    return {
        "seconds": window.seconds,
        "processor seconds": window.processor_seconds,
        "work": work,
        "completions": len(scored),
        "completion tokens": float(scored.sum()),
        "longest": float(scored.max()),
        "prompt tokens": float((lengths - scored).sum()),
        "padding": window.padding(),
    }


def make_parser():
    return TrlParser((train_countdown.ScriptArguments, GRPOConfig, ModelConfig), allow_abbrev=False)


def read_values(words):
    """Return every setting of a command line as one namespace."""
    parser, here = make_parser(), Machine.here()
    _, values = recipe.resolve(parser, recipe.read_flags(parser, words), here)
    recipe.fit(values, here.processes)
    return values


def main():
    args, own = read_arguments()
    config = ["--config", str(args.config or Machine.here().choose_recipe())]
    recipe_words = [*config, *as_words(machine_flags(read_values(config)))]
    recipe_words += [*as_words(METHODS[args.method]), *own]
    values = read_values(recipe_words)
    eval_every = values.eval_steps  # the recipe's
    shape, model, data = prepare(args, values)
    words = [*config, *as_words(run_flags(args, values, model, data)), *recipe_words[2:]]

    with tempfile.TemporaryDirectory(dir=args.folder, prefix="run-") as output:
        words += ["--output_dir", output]
        values = read_values(words)
        whole = without_weights(AutoConfig.from_pretrained(model))
        able = step_floors.measure_machine(whole.config.get_text_config(), arithmetic_type(values))
        clock = Clock()
        clock.install()
        train_countdown.main(*checks.check(make_parser(), words))
        write_result(args, shape, values, whole, able, clock, eval_every)


def write_result(args, shape, values, whole, able, clock, eval_every):
    """Writes what the run has shown. whole: the model without weights; able: step_floors.measure_machine's dict."""
    described = step_floors.describe(whole, values)
    windows = []
    for window in clock.windows[1:]:
        windows.append(describe_window(window, step_floors.work(described, values, window)))
    span = max(1, int(schedule.span(values)))
    result = {
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU",
        "threads": torch.get_num_threads(),
        "shape": shape,
        "parameters": whole.num_parameters(),
        "engine": "vLLM" if values.use_vllm else "transformers",
        "type": str(arithmetic_type(values)).removeprefix("torch."),
        "optimizer steps": span,
        "evaluations": span / eval_every if schedule.evaluates(values) else 0,  # a generation
        "machine": able,
        "published_rate": published_rate(values),
        "windows": windows,
        "peak_bytes": clock.peak_bytes,
        "estimated_bytes": estimate(values),
    }
    args.result.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
