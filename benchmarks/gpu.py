"""What a training step costs on this machine, for the shapes of Qwen2.5 with random weights: time, memory, use.

    python benchmarks/gpu.py --shapes 0.5B 1.5B 3B 7B --methods full lora

Each row is a run of train_countdown.py of its own, with the settings of configs/qwen2.5-1.5b.yaml but few completions,
with vLLM where it is installed and with transformers otherwise. Completions of random weights run to their full
length, which is the worst case. The first step of a run is left out. Prints a table with the peak of memory, of
whatever is on the card, beside plan.py's estimate of it, and writes OUTPUT/gpu.json.
"""

import argparse
import importlib.util
import json
import runpy
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SHAPES = {  # Qwen2.5's config.json: hidden, layers, heads, key-value heads, intermediate, vocabulary, tied embeddings
    "tiny": (64, 2, 4, 2, 128, 512, True),  # for a try without a GPU
    "0.5B": (896, 24, 14, 2, 4864, 151936, True),
    "1.5B": (1536, 28, 12, 2, 8960, 151936, True),
    "3B": (2048, 36, 16, 2, 11008, 151936, True),
    "7B": (3584, 28, 28, 4, 18944, 152064, False),
}
PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
    "A10": 125e12,
    "V100": 112e12,
}
PHASES = {  # TRL's own profile, by the part of a step that it belongs to
    "vLLM.generate": "generation",
    "transformers.generate": "generation",
    "sync_weights": "weight sync",
    "_get_per_token_logps_and_entropies": "log-probabilities",
}


def make_model(shape, folder):
    """A model folder with random bfloat16 weights of this shape, and the tiny model's tokenizer."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from tiny_model import build_tokenizer

    hidden, layers, heads, key_value_heads, intermediate, vocabulary, tied = SHAPES[shape]
    config = Qwen2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=4096,
        dtype="bfloat16",
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2ForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


def measure(result_path, flags):
    """Runs train_countdown.py in this process with TRL's profile and the peak of memory written to result_path."""
    import torch
    from transformers import TrainerCallback, trainer
    from trl.extras.profiling import ProfilingContext

    import plan
    import preflight

    cuda = torch.cuda.is_available()
    steps = []  # one dict of seconds by phase a step, "all" being the whole of it
    estimate = {}
    used = [0]  # bytes of the card, all that are there

    def watch():
        while True:
            free, total = torch.cuda.mem_get_info()
            used[0] = max(used[0], total - free)
            time.sleep(0.02)

    def record(self, duration):
        phase = next((phase for name, phase in PHASES.items() if self.name.endswith(name)), None)
        if steps and phase:
            steps[-1][phase] = steps[-1].get(phase, 0) + duration

    class Clock(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            steps.append({"all": -time.perf_counter()})

        def on_step_end(self, args, state, control, **kwargs):
            if cuda:
                torch.cuda.synchronize()
            steps[-1]["all"] += time.perf_counter()

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "completions/mean_length" in logs:
                steps[-1]["length"] = logs["completions/mean_length"]

        def on_train_end(self, args, state, control, **kwargs):
            result = {"steps": steps, "completions": args.generation_batch_size, **estimate}
            if cuda:
                result["peak_bytes"] = used[0]
            Path(result_path).write_text(json.dumps(result))

    def describe(values, model, rows, longest, strategy, card, describe=plan.describe):
        peaks = plan.memory(values, model, strategy, longest + values.max_completion_length, card)["peaks"]
        estimate["estimated_bytes"] = max(peaks.values())
        return describe(values, model, rows, longest, strategy, card)

    if cuda:
        threading.Thread(target=watch, daemon=True).start()
    ProfilingContext._log_metrics = record
    trainer.DEFAULT_CALLBACKS.append(Clock)
    preflight.plan.describe = describe
    sys.argv = ["train_countdown.py", *flags]
    runpy.run_path(str(ROOT / "train_countdown.py"), run_name="__main__")


def row(shape, method, result, parameters, trained, card):
    """A row of the table from a run's result: means over all steps but the first."""
    steps = result["steps"][1:] or result["steps"]

    def mean(key):
        return sum(step.get(key, 0) for step in steps) / len(steps)

    generation, scoring, sync = mean("generation"), mean("log-probabilities"), mean("weight sync")
    tokens = result["completions"] * mean("length")  # of completions; prompts are short here
    # Two operations a parameter and token forwards, four backwards (two with LoRA), two more where it is done again
    flops = tokens * parameters * (2 + 2 + (2 if trained < parameters else 4) + 2) + 2 * tokens * parameters
    peak = next((flops_a_second for name, flops_a_second in PEAK_FLOPS.items() if name in card), None)
    return {
        "shape": shape,
        "method": method,
        "parameters": parameters,
        "steps": len(steps),
        "seconds": mean("all"),
        "generation": generation,
        "log-probabilities": scoring,
        "weight sync": sync,
        "update": mean("all") - generation - scoring - sync,
        "completion tokens/s": tokens / mean("all"),
        "model FLOPs utilisation": flops / mean("all") / peak if peak else None,
        "peak GiB": result["peak_bytes"] / 2**30 if "peak_bytes" in result else None,
        "estimated GiB": result["estimated_bytes"] / 2**30,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["0.5B", "1.5B", "3B", "7B"])
    parser.add_argument("--methods", nargs="+", choices=("full", "lora"), default=["full", "lora"])
    parser.add_argument(
        "--steps", type=int, default=4, help="optimizer steps a run, the first of which is not counted"
    )
    parser.add_argument("--completions", type=int, default=64, help="completions a step")
    parser.add_argument("--max_completion_length", type=int, default=1024)
    parser.add_argument("--generation", choices=("vllm", "transformers"), help="default: vLLM where it is installed")
    parser.add_argument("--output_dir", default="outputs/gpu")
    args = parser.parse_args()

    import torch
    from rich.console import Console
    from rich.table import Table
    from transformers import AutoConfig, AutoModelForCausalLM

    import preprocess

    cuda = torch.cuda.is_available()
    card = torch.cuda.get_device_name(0) if cuda else "no GPU"
    vllm = args.generation == "vllm" or (not args.generation and cuda and importlib.util.find_spec("vllm") is not None)
    folder = Path(args.output_dir)
    preprocess.main(["countdown", "--train_size", "1024", "--test_size", "64", "--local_dir", str(folder / "data")])
    rows = []
    for shape in args.shapes:
        model = folder / f"model-{shape}"
        if not (model / "config.json").exists():
            make_model(shape, model)
        with torch.device("meta"):
            parameters = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).num_parameters()
        for method in args.methods:
            batch = min(8, args.completions)
            flags = {
                "config": ROOT / "configs" / "qwen2.5-1.5b.yaml",
                "model_name_or_path": model,
                "data_dir": folder / "data",
                "output_dir": folder / f"run-{shape}-{method}",
                "max_steps": args.steps,
                "per_device_train_batch_size": batch,
                "gradient_accumulation_steps": args.completions // batch,
                "max_completion_length": args.max_completion_length,
                "beta": 0.0,
                "use_vllm": vllm,
                "use_cpu": not cuda,
                "bf16": cuda,
                "eval_strategy": "no",
                "eval_on_start": False,
                "save_strategy": "no",
                "log_completions": False,
            }
            if method == "lora":
                flags |= {"use_peft": True, "lora_r": 32, "lora_target_modules": "all-linear", "dtype": "bfloat16"}
            words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
            result = folder / f"{shape}-{method}.json"
            result.unlink(missing_ok=True)
            status = subprocess.run([sys.executable, __file__, "--measure", str(result), *words], cwd=ROOT).returncode
            if status or not result.exists():
                rows.append({"shape": shape, "method": method, "failed": f"exit status {status}"})
                continue
            trained = parameters if method == "full" else 0
            rows.append(row(shape, method, json.loads(result.read_text()), parameters, trained, card))
    report = {"card": card, "vllm": vllm, "completions": args.completions, "rows": rows}
    (folder / "gpu.json").write_text(json.dumps(report, indent=2) + "\n")
    columns = list(dict.fromkeys(key for each in rows for key in each))
    table = Table(
        *columns, title=f"{card}, {'vLLM' if vllm else 'transformers'}, {args.completions} completions a step"
    )
    for each in rows:
        cells = [each.get(column) for column in columns]
        table.add_row(
            *(f"{cell:,.3g}" if isinstance(cell, float) else "" if cell is None else str(cell) for cell in cells)
        )
    Console(width=200).print(table)
    if all("failed" in each for each in rows):
        sys.exit("no run came to its end; its own message is above")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], sys.argv[3:])
    else:
        main()
