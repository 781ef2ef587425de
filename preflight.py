"""Everything that can be found wrong before a model is loaded: each problem is one line that says what to type.

Also picks the recipe for the machine where none is named, and makes a recipe's own data and model where missing.
"""

import argparse
import difflib
import importlib.util
import math
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import torch
import yaml
from filelock import FileLock
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_optimizer import _BITSANDBYTES_OPTIMIZERS
from trl.import_utils import is_vllm_available

import plan
import rewards
import sandbox

ROOT = Path(__file__).resolve().parent
PROCESSES = int(os.environ.get("WORLD_SIZE", 1))
IS_MAIN = int(os.environ.get("RANK", 0)) == 0


@dataclass
class Facts:
    """What the checks learn on their way: training rows, the longest prompts and their tokens, the model's shape."""

    rows: int = 0
    prompts: list = field(default_factory=list)
    longest: int = 0
    model: torch.nn.Module | None = None  # on the meta device, without weights


def parse(parser, argv):
    """The parser's dataclasses filled from --config and flags, once nothing is wrong with them.

    parser: a TrlParser; argv: list[str]. Without --config, the recipe for this machine is taken. Where something is
    wrong, exits with status 1 and every problem found.
    """
    option = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    option.add_argument("--config")
    option, flags = option.parse_known_args(argv)
    if {"-h", "--help"} & set(flags):
        parser.print_help()
        sys.exit(0)
    config = option.config or choose_recipe()
    try:
        recipe = yaml.safe_load(Path(config).read_text())
        unknown = parser.set_defaults_with_config(**{key: recipe[key] for key in recipe if key != "env"})
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError) as error:
        stop(f"--config {config} is not a readable YAML mapping", [str(error)])
    accumulation = recipe.get("gradient_accumulation_steps", 1)
    if (
        option.config is None and PROCESSES > 1 and accumulation > 1
    ):  # as many completions a step, on however many cards
        flags = ["--gradient_accumulation_steps", str(max(1, accumulation // PROCESSES)), *flags]
    values, unknown_flags = parser.parse_known_args(flags)
    names = [word.lstrip("-").split("=")[0] for word in unknown + unknown_flags if word.startswith("--")]
    if unknown or unknown_flags:
        problems = unknown_settings(names or unknown_flags, values)
        stop(f"{config} and the flags given name settings that do not exist", problems)
    if not values.dry_run:
        prepare(values, parser.parse_known_args([])[0])
    facts = Facts()
    problems = list(find_problems(values, facts))
    if facts.model is not None and IS_MAIN:
        card = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
        lines = plan.describe(values, facts.model, facts.rows, facts.longest, plan.read_strategy(), card)
        print("\n".join(lines), flush=True)
    if problems:
        stop(f"{config} cannot run as it is", problems)
    if values.dry_run:
        sys.exit(0)
    if values.resume_from_checkpoint:
        flags += ["--resume_from_checkpoint", str(find_checkpoint(values))]
    if values.use_cpu and PROCESSES == 1 and torch.get_num_threads() < os.cpu_count():
        print(f"{torch.get_num_threads()} of {os.cpu_count()} CPU threads in use: set OMP_NUM_THREADS to use more")
    try:
        return parser.parse_args_and_config(["--config", config, *flags])
    except ValueError as error:  # what TRL and transformers check themselves
        stop(f"{config} cannot run as it is", [str(error)])


def stop(what, problems):
    """Exits with status 1; the first process says why."""
    sys.exit("\n  - ".join([f"train_countdown.py: {what}:", *problems]) if IS_MAIN else 1)


def unknown_settings(names, values):
    """One line a name that is no setting, with the nearest that is."""
    for name in names:
        nearest = difflib.get_close_matches(name, vars(values), n=1)
        yield f"{name}" + (f": did you mean {nearest[0]}?" if nearest else ": nothing has a name like it; see --help")


def choose_recipe():
    """The path of the recipe for this machine; says which and why."""
    if torch.cuda.is_available():
        gib = torch.cuda.get_device_properties(0).total_memory / 2**30
        name = "qwen2.5-1.5b" if gib >= 70 else "qwen2.5-1.5b-lora-24gb"
        why = f"{torch.cuda.get_device_name(0)}, {gib:.0f} GiB"
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            name, why = "qwen2.5-1.5b-lora-fp16", f"{why}, no bfloat16"
    else:
        name, why = "tiny_cpu", "no GPU found"
    if IS_MAIN:
        print(f"recipe: configs/{name}.yaml ({why}); name another with --config", flush=True)
    return str(ROOT / "configs" / f"{name}.yaml")


def prepare(values, recipe):
    """Runs the recipe's `prepare` script where data or a model of the recipe's own is missing, once a machine.

    What a flag points elsewhere is the user's own, and never made here.
    """
    own = [Path(recipe.data_dir, "test.parquet")] if values.data_dir == recipe.data_dir else []
    if recipe.model_name_or_path == values.model_name_or_path and str(values.model_name_or_path).startswith("models/"):
        own.append(Path(recipe.model_name_or_path, "config.json"))

    def missing():
        return [str(path) for path in own if not path.exists()]

    if values.prepare and missing():
        with FileLock(".prepare.lock"):  # the machine's other processes wait here and then find everything made
            if missing():
                print(f"{' and '.join(missing())} not there yet: running python {values.prepare}", flush=True)
                script, *arguments = shlex.split(values.prepare)
                try:
                    status = subprocess.run([sys.executable, str(ROOT / script), *arguments]).returncode
                except KeyboardInterrupt:
                    status = "interrupted"
                if status:
                    stop(f"python {values.prepare} failed ({status})", ["its own message is above"])


def find_problems(values, facts):
    """Yields one line a problem. values: the namespace of every setting after config and flags. Fills in `facts`."""
    yield from batch_problems(values)
    yield from backend_problems(values)
    yield from strategy_problems(values)
    for tracker in {values.report_to} if isinstance(values.report_to, str) else set(values.report_to):
        if tracker not in ("none", "all") and importlib.util.find_spec(tracker) is None:
            yield f"report_to names {tracker}, which is not installed: type pip install {tracker}"
    yield from data_problems(values, facts)
    yield from model_problems(values, facts)
    if IS_MAIN:
        yield from output_problems(values, facts.model.num_parameters() if facts.model else 0)


def batch_problems(values):
    steps = values.steps_per_generation or values.gradient_accumulation_steps
    per_device, group = values.per_device_train_batch_size, values.num_generations
    batch = values.generation_batch_size or per_device * PROCESSES * steps
    if batch % group:
        unit = group // math.gcd(group, PROCESSES * steps)
        lower = per_device // unit * unit
        groups = sorted((g for g in range(2, batch + 1) if batch % g == 0), key=lambda g: abs(g - group))
        yield (
            f"{batch} completions a generation (per_device_train_batch_size {per_device} x {PROCESSES} processes x "
            f"{steps} steps) do not divide into groups of num_generations {group}: set --per_device_train_batch_size "
            f"to {' or '.join(str(n) for n in (lower, lower + unit) if n)}, or --num_generations to "
            f"{' or '.join(map(str, sorted(groups[:2])))}"
        )
    span = int(plan.span(values))
    if str(values.save_strategy) == "steps" and values.save_steps >= 1 and span > 1 and values.save_steps % span:
        lower = int(values.save_steps // span * span)
        yield (
            f"save_steps {values.save_steps} is no multiple of the {span} optimizer steps that share one generation, "
            f"so a checkpoint would not resume exactly: set --save_steps to "
            f"{' or '.join(str(n) for n in (lower, lower + span) if n)}"
        )


def backend_problems(values):
    cuda = torch.cuda.is_available()
    half = plan.mixed_precision(values)
    if half and not cuda and (half == "fp16" or not values.use_cpu):
        yield f"{half} is on and there is no GPU: pass --use_cpu --{half} false, or leave out --config"
    elif (
        half == "bf16" and cuda and not values.use_cpu and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        yield f"bf16 is on and {torch.cuda.get_device_name(0)} has no bfloat16: pass --bf16 false --fp16 true"
    if values.use_vllm and not cuda:
        yield "use_vllm is on and there is no GPU: pass --use_vllm false"
    elif values.use_vllm:
        with warnings.catch_warnings(record=True) as caught:  # how TRL says that it does not know a version of vLLM
            warnings.simplefilter("always")
            if not is_vllm_available():
                yield "use_vllm is on and vllm is not installed: type pip install -e '.[gpu]', or --use_vllm false"
        for warning in caught:
            yield f"{warning.message} Type pip install -e '.[gpu]', or pass --use_vllm false"
    if cuda and not values.use_cpu and torch.cuda.device_count() > 1 and "WORLD_SIZE" not in os.environ:
        yield (
            f"one process sees {torch.cuda.device_count()} GPUs and would split its batches over them: set "
            "CUDA_VISIBLE_DEVICES to one of them, or start with accelerate launch and a file of configs/accelerate"
        )
    needs = [f"optim {values.optim}"] if values.optim in _BITSANDBYTES_OPTIMIZERS else []
    needs += [name for name in ("load_in_4bit", "load_in_8bit") if getattr(values, name)]
    if needs and importlib.util.find_spec("bitsandbytes") is None:
        yield f"{' and '.join(needs)} needs bitsandbytes, which is not installed: type pip install -e '.[gpu]'"


def strategy_problems(values):
    parallel = values.vllm_tensor_parallel_size
    if values.use_vllm and values.vllm_mode == "colocate" and PROCESSES % parallel:
        sizes = " or ".join(str(size) for size in range(1, PROCESSES + 1) if PROCESSES % size == 0)
        yield (
            f"vllm_tensor_parallel_size {parallel} does not divide the {PROCESSES} process{'es' * (PROCESSES > 1)}: "
            f"set --vllm_tensor_parallel_size to {sizes}"
        )
    strategy = plan.read_strategy()
    if "FSDP" in strategy.name and values.optim in _BITSANDBYTES_OPTIMIZERS:
        yield f"optim {values.optim} of bitsandbytes does not work with FSDP: take configs/accelerate/zero2.yaml"
    if strategy.deepspeed:
        if importlib.util.find_spec("deepspeed") is None:
            yield "the launcher asks for DeepSpeed, which is not installed: type pip install -e ."
        # DeepSpeed compiles its operators for the CPU (communication, AdamW of an offloaded optimizer) when first used
        missing = [package for tool, package in (("g++", "g++"), ("ninja", "ninja-build")) if not shutil.which(tool)]
        if missing and (values.use_cpu or strategy.offload):
            yield f"DeepSpeed compiles an operator with g++ and ninja; type apt-get install {' '.join(missing)}"


def data_problems(values, facts):
    known = {name: function for name, function in vars(rewards).items() if name.endswith("_reward")}
    if unknown := [name for name in values.reward_funcs if name not in known]:
        yield f"reward_funcs names {' and '.join(unknown)}; rewards.py has {', '.join(known)}"
    if (
        "code_reward" in values.reward_funcs
        and not values.allow_unsandboxed_code
        and (why := sandbox.why_unavailable())
    ):
        yield f"code_reward: {why}"
    if values.reward_weights is not None and len(values.reward_weights) != len(values.reward_funcs):
        yield (
            f"reward_weights has {len(values.reward_weights)} numbers and reward_funcs {len(values.reward_funcs)} "
            "names: give one weight for each"
        )
    write = f"type python {values.prepare or 'preprocess.py TASK'}"
    paths = [Path(values.data_dir, f"{split}.parquet") for split in ("train", "test")]
    if missing := [str(path) for path in paths if not path.is_file()]:
        yield f"missing data: {' and '.join(missing)}; {write}, or name the folder that has it with --data_dir"
        return
    for path in paths:
        try:
            columns, rows = pq.read_schema(path).names, pq.read_metadata(path).num_rows
        except (OSError, ValueError) as error:
            yield f"{path} is no readable parquet file ({error}): {write} to have it anew"
            continue
        eval_batch = values.per_device_eval_batch_size * PROCESSES
        if "prompt" not in columns:
            yield f"{path} has the columns {columns} and lacks prompt: {write}"
            continue
        if path.stem == "train":
            facts.rows = rows
        if path.stem == "test" and str(values.eval_strategy) != "no" and rows < eval_batch:
            yield (
                f"{path} has {rows} rows, less than one evaluation batch ({values.per_device_eval_batch_size} x "
                f"{PROCESSES} processes): set --per_device_eval_batch_size to {max(1, rows // PROCESSES)}"
            )
        facts.prompts += sorted(pq.read_table(path, columns=["prompt"])["prompt"].to_pylist(), key=len)[-16:]
        if not unknown:
            yield from reward_problems(path, [known[name] for name in values.reward_funcs])


def reward_problems(path, functions):
    """Asks the reward functions for the rewards of empty completions, which shows what columns and rows they miss."""
    first = next(pq.ParquetFile(path).iter_batches(1024)).to_pydict()
    prompts = first.pop("prompt")
    scores = []
    for function in functions:
        try:
            scores.append(function(prompts=prompts, completions=[""] * len(prompts), **first))
        except (TypeError, ValueError) as error:
            yield f"{path} has the columns {[*first, 'prompt']}, with which {function.__name__} cannot work ({error})"
            return
    unscored = [i for i, row in enumerate(zip(*scores, strict=True)) if all(score is None for score in row)]
    if unscored:
        source = first.get("data_source", ["another task"] * len(prompts))[unscored[0]]
        yield (
            f"{len(unscored):,} of the first {len(prompts):,} rows of {path} get no reward from any of reward_funcs "
            f"(row {unscored[0]} is of {source}): name the function for them too"
        )


def is_path(name):
    """Whether the name of a model is a folder's: the hub is not asked for it, which offline means long retries."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or ("/" in name and Path(name).parent.is_dir())


def model_problems(values, facts):
    name = values.model_name_or_path
    if not name:
        yield "no model is named: pass --model_name_or_path FOLDER_OR_HUB_ID"
        return
    if is_path(name) and not Path(name).is_dir():
        yield f"model {name} is a folder that does not exist: pass --model_name_or_path FOLDER_OR_HUB_ID"
        return
    try:
        config = AutoConfig.from_pretrained(name, revision=values.model_revision)
        tokenizer = AutoTokenizer.from_pretrained(name, revision=values.model_revision)
        with torch.device("meta"):
            facts.model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError) as error:
        yield (
            f"model {name} cannot be had ({str(error).splitlines()[0]}): where there is a network, type hf download "
            f"{name} --local-dir models/{Path(name).name}; here, pass --model_name_or_path models/{Path(name).name}"
        )
        return
    context, where, flag = config.get_text_config().max_position_embeddings, "the model's context", ""
    colocate = values.use_vllm and values.vllm_mode == "colocate"  # a server has its own length
    if colocate and values.vllm_max_model_length and values.vllm_max_model_length < context:
        context, where, flag = (
            values.vllm_max_model_length,
            "vllm_max_model_length",
            ", or raise --vllm_max_model_length",
        )
    longest = facts.longest = max(map(len, tokenizer(facts.prompts)["input_ids"])) if facts.prompts else 0
    if longest + values.max_completion_length > context:
        yield (
            f"a prompt of {longest} tokens and max_completion_length {values.max_completion_length} exceed {where} "
            f"of {context}: set --max_completion_length to at most {context - longest}{flag}"
        )


def output_problems(values, parameters):
    output = Path(values.output_dir or "trainer_output")
    existing = next(folder for folder in (output, *output.resolve().parents) if folder.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        yield f"output_dir {output} cannot be written to ({error}): name another with --output_dir"
        return
    # float32 weights and AdamW's two moments, and the final model; a LoRA checkpoint is small
    copies = values.save_total_limit or 1
    needed = parameters * (12 * copies + 4) * (not values.use_peft) * (str(values.save_strategy) != "no")
    free = shutil.disk_usage(existing).free
    if free < needed:
        yield (
            f"output_dir {output} has {free / 1e6:,.0f} MB free and {copies} checkpoints with the final model take "
            f"{needed / 1e6:,.0f} MB: free some, name another --output_dir, or lower --save_total_limit"
        )
    if values.resume_from_checkpoint:
        checkpoint = find_checkpoint(values)
        if checkpoint is None:
            yield f"{output} holds no complete checkpoint to resume from: leave out --resume_from_checkpoint"
            return
        # Trainer would go on without an optimizer or a random state that is missing, and say nothing
        parts = {"trainer_state.json": ["trainer_state.json"], "random state": ["rng_state*"]}
        parts["optimizer"] = ["optimizer*", "global_step*"]  # DeepSpeed's is in global_step*
        lacking = [part for part, names in parts.items() if not any(list(checkpoint.glob(name)) for name in names)]
        if lacking:
            yield (
                f"checkpoint {checkpoint} is incomplete (no {', '.join(lacking)}), so it would not go on as it was: "
                "name an earlier one, or pass --resume_from_checkpoint true for the newest complete one"
            )


def find_checkpoint(values):
    """The folder that --resume_from_checkpoint means; "true" means the newest complete checkpoint, None if none."""
    if values.resume_from_checkpoint.lower() not in ("true", "1", "yes"):
        return Path(values.resume_from_checkpoint)
    # trainer_state.json is written last: a folder without it was cut off while it was saved
    complete = [state.parent for state in Path(values.output_dir).glob("checkpoint-*/trainer_state.json")]
    return max(complete, key=lambda folder: int(folder.name.split("-")[1]), default=None)
