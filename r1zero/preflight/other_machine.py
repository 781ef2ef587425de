"""A machine that one does not have, as `--dry_run --gpus 8 --gpu_memory 80` describes it.

The plan of a run there is made as it is made here, with what accelerate launch would say there: checks.plan_for.
"""

import contextlib
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import yaml

from r1zero import ROOT, files, processes
from r1zero.estimate.memory import GB, GIB
from r1zero.preflight import hardware as hardware_checks
from r1zero.preflight import machine
from r1zero.training import reward_functions

STRATEGIES = ROOT / "configs" / "accelerate"
WITH_SEVERAL = "zero2"  # how train.sh starts on several GPUs


@dataclass
class OtherMachine:
    """gpus: how many; gigabytes: of each, in 10^9 bytes, None where there are none; strategy: as the flag names it."""

    gpus: int
    gigabytes: float | None
    strategy: str | None

    @property
    def card(self):
        """Bytes of a card, None where there is none."""
        return int(self.gigabytes * GB) if self.gpus else None

    def choose_recipe(self, use_cpu=False):
        """The path (str) of the recipe for this machine where none is named; says which. As machine.choose_recipe."""
        name = "tiny_cpu" if use_cpu or not self.gpus else machine.recipe_for(self.card / GIB)
        print(f"recipe: configs/{name}.yaml (for that machine); name another with --config", flush=True)
        return str(ROOT / "configs" / f"{name}.yaml")

    def strategy_file(self, recipe):
        """The file that accelerate launch starts a recipe (path) with: the flag's, or that of the recipe's header.

        A recipe for one GPU is started on several as train.sh does it.
        """
        if self.strategy:
            file = STRATEGIES / f"{self.strategy}.yaml"
            if not file.is_file():
                known = ", ".join(sorted(path.stem for path in STRATEGIES.glob("*.yaml")))
                processes.stop(
                    f"--strategy {self.strategy} is no file of configs/accelerate", [f"pass one of {known}"]
                )
            return file
        text = Path(recipe).read_text() if Path(recipe).is_file() else ""  # read_recipe says what is wrong with it
        header = re.search(r"^#.*configs/accelerate/(\w+)\.yaml", text, flags=re.MULTILINE)
        name = header[1] if header else "single"
        if name == "single" and self.gpus > 1:
            name = WITH_SEVERAL
        return STRATEGIES / f"{name}.yaml"

    def line(self, file):
        """What is planned for. file: Path, of the strategy."""
        cards = "no GPU"
        if self.gpus:
            size = f"{self.gigabytes:g} GB, which are {self.card / GIB:.1f} GiB"
            cards = f"{self.gpus} GPU{'s' * (self.gpus > 1)} of {size}"
        return f"planned for another machine, with {cards}, and started with configs/accelerate/{file.name}"


def described(parser, argv):
    """The OtherMachine that the flags describe, or None where they are about this one. Exits where one is missing."""
    values = parser.parse_known_args(argv)[0]
    given = [f"--{name}" for name in ("gpus", "gpu_memory", "strategy") if getattr(values, name) is not None]
    if not given:
        return None
    found = " and ".join(given)
    if not values.dry_run:
        processes.stop(
            f"{found} without --dry_run", ["a run takes the machine that it finds: leave them out, or plan"]
        )
    if values.gpus is None or values.gpus < 0 or (values.gpus and not (values.gpu_memory or 0) > 0):
        processes.stop(f"{found} do not describe a machine", ["pass --gpus 8 --gpu_memory 80, or --gpus 0 for no GPU"])
    return OtherMachine(values.gpus, values.gpu_memory, values.strategy)


def launcher_variables(file, processes):
    """What accelerate launch would say to each of so many processes, with this file, as a dict of variables."""
    settings = yaml.safe_load(Path(file).read_text())
    variables = {"WORLD_SIZE": "1" if settings["distributed_type"] == "NO" else str(max(1, processes))}
    if settings["distributed_type"] == "DEEPSPEED":
        variables["ACCELERATE_USE_DEEPSPEED"] = "true"
        for name in ("zero_stage", "offload_optimizer_device", "offload_param_device"):
            variables[f"ACCELERATE_DEEPSPEED_{name.upper()}"] = str(settings["deepspeed_config"][name])
    if settings["distributed_type"] == "FSDP":
        version = settings["fsdp_config"].get("fsdp_version", 1)
        variables |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": str(version)}
    return variables


@contextlib.contextmanager
def launched(variables):
    """As if the launcher had set these variables (dict) for this process, and no others of its own."""
    before = dict(os.environ)
    for name in before:
        if name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") or name.startswith(("ACCELERATE_", "FSDP_")):
            del os.environ[name]
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def errors(other, values):
    """What such a machine cannot do, and what reward_funcs names that rewards.py does not have."""
    found = []
    if not other.gpus and not values.use_cpu:
        found.append("the recipe is for a GPU and that machine has none: pass --gpus and --gpu_memory")
    ours = [name for name in values.reward_funcs if ":" not in name]
    try:
        reward_functions.resolve(ours, values.data_dir, allow_unsandboxed_code=True)
    except ValueError as error:
        found.append(files.one_line(error))
    return found


def unchecked_line(values, has_data, measured, longest):
    """What only that machine can tell. has_data, measured: whether data and lengths of prompts are known here."""
    unchecked = ["free space on its disk", "the model's weights"]
    if not values.use_cpu:
        unchecked.insert(0, "driver and type of its cards")
    if values.use_vllm:
        unchecked.append("vLLM and the compilers that it needs")
    if values.optim in hardware_checks.BITSANDBYTES_OPTIMIZERS:
        unchecked.append("bitsandbytes")
    if "code_reward" in values.reward_funcs:
        unchecked.append("the sandbox of code_reward")
    if any(":" in name for name in values.reward_funcs):
        unchecked.append("your own reward functions")
    if not has_data:
        unchecked.append("the data's columns")
    if not measured:
        room = f" (up to {longest:,} tokens are planned for)" if longest else ""
        unchecked.append(f"the length of the prompts{room}")
    return f"not checked, since only that machine can tell: {', '.join(unchecked)}"


def room_for_prompts(values):
    """Tokens of the longest prompt that a recipe has room for, 0 where it does not say. values: every setting."""
    words = shlex.split(values.prepare or "")
    if "--max_prompt_length" in words:
        return int(words[words.index("--max_prompt_length") + 1])
    if values.use_vllm and values.vllm_max_model_length:
        return max(0, values.vllm_max_model_length - values.max_completion_length)
    return 0
