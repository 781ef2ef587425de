"""The machine of a run as a value: this one, or one that `--dry_run --gpus 8 --gpu h100` describes."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from accelerate.utils import DeepSpeedPlugin

from r1zero import ROOT, processes
from r1zero.estimate import hours
from r1zero.preflight import hardware

STRATEGIES = ROOT / "configs" / "accelerate"
WITH_SEVERAL = "zero2"  # how train.sh starts on several GPUs
GB, GIB = 10**9, 2**30
ZERO_SHARDS = {  # what each stage of DeepSpeed's ZeRO spreads over the processes
    1: ("optimizer",),
    2: ("optimizer", "gradients"),
    3: ("optimizer", "gradients", "weights"),
}


@dataclass
class Strategy:
    """How a model is spread over the processes.

    shards: dict of the parts of a model to how many processes share one; offload: the parts in the CPU's memory.
    """

    name: str
    processes: int
    shards: dict
    deepspeed: bool = False
    offload: tuple = ()

    @property
    def gathers_weights(self):
        """Whether every pass gathers the weights from all processes, so that all run the same number of passes."""
        return self.shards["weights"] > 1


@dataclass
class Machine:
    """A machine and how the run is started on it.

    name: of its card, or "no GPU"; card: bytes of one card, None without; bf16: whether the card computes in bfloat16;
    peak: what such a card does at most, None if not known; unseen: a line on a GPU that torch cannot use, or None;
    file: Path of the launcher's settings on a machine that flags describe, None for the one that this process is on.
    """

    strategy: Strategy
    name: str = "no GPU"
    card: int | None = None
    bf16: bool = True
    peak: hours.Card | None = None
    unseen: str | None = None
    file: Path | None = None

    @classmethod
    def here(cls):
        """Return the Machine that this process is on."""
        strategy = read_strategy(os.environ)
        if not torch.cuda.is_available():
            return cls(strategy, unseen=hardware.why_unseen())
        name = torch.cuda.get_device_name(0)
        return cls(
            strategy,
            name=name,
            peak=hours.find_card(name),
            card=torch.cuda.get_device_properties(0).total_memory,
            bf16=torch.cuda.is_bf16_supported(including_emulation=False),
        )

    @classmethod
    def described(cls, flags):
        """Return the Machine that --gpu or --gpu_memory, --gpus and --strategy describe. flags: recipe.Flags.

        Without --strategy it is started as the header of --config says, and as train.sh does it on several GPUs. With
        --gpu alone it has as many as that header starts processes. Exit if half a machine is described.
        """
        given = [f"--{name}" for name in ("gpu", "gpus", "gpu_memory", "strategy") if name in flags.given]
        if not flags.given.get("dry_run"):
            advice = "a run takes the machine that it finds: leave them out, or plan"
            processes.stop(f"{' and '.join(given)} without --dry_run", [advice])
        there = flags.config and Path(flags.config).is_file()
        recipe = Path(flags.config).read_text(errors="replace") if there else ""
        gpus, gigabytes, kind = (flags.given.get(flag) for flag in ("gpus", "gpu_memory", "gpu"))
        peak = None
        if kind is not None:
            peak = hours.find_card(kind)
            if peak is None:
                known = ", ".join(hours.CARDS)
                processes.stop(f"--gpu {kind} is not in the table", [f"pass one of {known}, or --gpu_memory"])
            started = re.search(r"^#.*--num_processes (\d+)", recipe, flags=re.MULTILINE)
            gpus = gpus if gpus is not None else int(started[1]) if started else 1
            gigabytes = gigabytes or peak.memory
        if gpus is None or gpus < 0 or (gpus and not (gigabytes or 0) > 0):
            advice = "pass --gpus 8 --gpu_memory 80, --gpu h100, or --gpus 0 for no GPU"
            processes.stop(f"{' and '.join(given)} and no more than that is no machine", [advice])
        name = flags.given.get("strategy")
        if name is None:
            header = re.search(r"^#.*configs/accelerate/(\w+)\.yaml", recipe, flags=re.MULTILINE)
            name = header[1] if header else "single"
            if name == "single" and gpus > 1:
                name = WITH_SEVERAL
        file = STRATEGIES / f"{name}.yaml"
        if not file.is_file():
            known = ", ".join(sorted(path.stem for path in STRATEGIES.glob("*.yaml")))
            processes.stop(f"there is no configs/accelerate/{name}.yaml", [f"pass --strategy with one of {known}"])
        strategy = read_strategy(launcher_variables(file, gpus))
        if not gpus:
            return cls(strategy, file=file)
        size = f"{gigabytes:g} GB, which are {gigabytes * GB / GIB:.1f} GiB"
        name = f"{gpus} {(kind or 'GPU').upper()}{'s' * (gpus > 1)} of {size}"
        bf16 = peak is None or peak.bf16
        return cls(strategy, name, int(gigabytes * GB), bf16=bf16, peak=peak, file=file)

    @property
    def is_here(self):
        return self.file is None

    @property
    def processes(self):
        return self.strategy.processes

    def choose_recipe(self, use_cpu=False):
        """Return the path (str) of the recipe for this machine, and print it. Exit if torch cannot use its GPU."""
        if self.unseen and not use_cpu:
            processes.stop("this machine has a GPU that cannot be used as it is", [self.unseen])
        name, why = "tiny_cpu", "use_cpu is on" if use_cpu else self.name
        if self.card and not use_cpu:
            gib = self.card / GIB
            name = "qwen2.5-1.5b" if gib >= 40 else "qwen2.5-1.5b-lora-24gb"
            if gib < 20 or not self.bf16:
                name = "qwen2.5-1.5b-lora-t4"
            why = f"{self.name}, {gib:.0f} GiB{'' if self.bf16 else ', no bfloat16'}"
        if processes.is_main_process():
            why = why if self.is_here else "for that machine"
            print(f"recipe: configs/{name}.yaml ({why}); name another with --config", flush=True)
        return str(ROOT / "configs" / f"{name}.yaml")


def read_strategy(environment):
    """Return the Strategy that accelerate's launcher asks for through its variables (a mapping)."""
    count = int(environment.get("WORLD_SIZE", 1))
    whole = {"weights": 1, "gradients": 1, "optimizer": 1}
    if environment.get("ACCELERATE_USE_DEEPSPEED") == "true":
        stage, offload = read_deepspeed(environment)
        name = f"DeepSpeed ZeRO-{stage}"
        if offload:
            name += f" with {' and '.join(offload)} on the CPU"
        shards = whole | dict.fromkeys(ZERO_SHARDS.get(stage, ()), count)
        return Strategy(name, count, shards, deepspeed=True, offload=offload)
    if environment.get("ACCELERATE_USE_FSDP") == "true":
        return Strategy(f"FSDP{environment.get('FSDP_VERSION', '1')}", count, dict.fromkeys(whole, count))
    return Strategy("DDP" if count > 1 else "one process", count, whole)


def read_deepspeed(environment):
    """Return the stage of ZeRO and the parts on the CPU, from accelerate's variables or the DeepSpeed file they name.

    Everything is given to accelerate's plugin: what is left out it reads in this process's own environment.
    """
    plugin = DeepSpeedPlugin(
        hf_ds_config=environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none"),
        zero_stage=int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 2)),
        offload_optimizer_device=environment.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none"),
        offload_param_device=environment.get("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none"),
        zero3_init_flag=False,
    )
    offload = []
    if plugin.offload_optimizer_device != "none":
        offload.append("optimizer")
    if plugin.offload_param_device != "none":
        offload.append("weights")
    return plugin.zero_stage, tuple(offload)


def launcher_variables(file, processes):
    """Return the variables (dict) that accelerate launch would set for so many processes with a file of its own."""
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
