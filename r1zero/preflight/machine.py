"""What a run finds on its machine: the recipe for it, what is missing, how processes share the model."""

import argparse
import difflib
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from filelock import FileLock

import preprocess
from r1zero import ROOT, processes, tiny_model
from r1zero.preflight import batch, cards
from r1zero.preflight import settings as setting_checks

ZERO_SHARDS = {  # what each stage of DeepSpeed's ZeRO spreads over the processes
    1: ("optimizer",),
    2: ("optimizer", "gradients"),
    3: ("optimizer", "gradients", "weights"),
}


@dataclass
class Recipe:
    """A recipe with the flags given beside it.

    path: str, of the YAML; flags: list[str]; values: the namespace of every setting, flags included; own: the same
    without the flags.
    """

    path: str
    flags: list
    values: argparse.Namespace
    own: argparse.Namespace


def split_config(argv):
    """What --config names (str or None), and all other words (list[str])."""
    option = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    option.add_argument("--config")
    option, flags = option.parse_known_args(argv)
    return option.config, flags


def read_recipe(parser, argv, choose=None):
    """The Recipe that argv (list[str]) names with --config, or the one for this machine, with all other flags.

    parser: a TrlParser, whose defaults become the recipe's values; choose: what stands for choose_recipe. Exits where
    the YAML cannot be read, or where it or a flag names a setting that does not exist or has a value that cannot be
    meant, and for --help.
    """
    config, flags = split_config(argv)
    if "-h" in flags or "--help" in flags:
        parser.print_help()
        sys.exit(0)
    path = config or (choose or choose_recipe)(use_cpu=parser.parse_known_args(flags)[0].use_cpu)
    try:
        settings = yaml.load(Path(path).read_text(), setting_checks.UniqueLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        processes.stop(f"--config {path} is not a readable YAML mapping", [str(error)])
    if not isinstance(settings, dict):
        processes.stop(
            f"--config {path} is not a readable YAML mapping", [f"found {settings!r}, wanted lines as max_steps: 96"]
        )
    errors = setting_checks.type_errors(settings, parser.dataclass_types)
    if errors:
        processes.stop(f"{path} cannot run as it is", errors)
    unknown = parser.set_defaults_with_config(**{key: settings[key] for key in settings if key != "env"})
    values, unknown_flags = parser.parse_known_args(flags)
    unknown += unknown_flags
    if unknown:
        errors = unknown_settings(unknown, values)
        processes.stop(f"{path} and the flags given name settings that do not exist", errors)
    errors = setting_checks.value_errors(values)
    if errors:
        processes.stop(f"{path} cannot run as it is", errors)
    recipe = Recipe(path, flags, values, own=parser.parse_known_args([])[0])
    shared, line = batch.share(recipe, chosen=config is None, processes=processes.count())
    if line and processes.is_main_process():
        print(line, flush=True)
    recipe.flags = [*flags, *shared, *batch.share_evaluation(recipe, processes.count())]
    recipe.values = parser.parse_known_args(recipe.flags)[0]
    return recipe


def unknown_settings(words, values):
    """One line for each name that is no setting, with the nearest that is. words: names as flags, and their values."""
    names = [word.lstrip("-").split("=")[0] for word in words if word.startswith("--")]
    errors = []
    for name in names or words:
        nearest = difflib.get_close_matches(name, vars(values), n=1)
        meant = f"did you mean {nearest[0]}?" if nearest else "nothing has a name like it; see --help"
        errors.append(f"{name}: {meant}")
    return errors


def choose_recipe(use_cpu=False):
    """The path (str) of the recipe for this machine; says which and why. Exits where there is a GPU that torch misses.

    use_cpu: whether a flag asks for the CPU, which is then what the recipe is for.
    """
    import torch  # here, as it takes a second, which other users of this module do without

    if use_cpu:
        name, why = "tiny_cpu", "use_cpu is on"
    elif not torch.cuda.is_available():
        unseen = cards.why_unseen()
        if unseen:
            processes.stop("this machine has a GPU that cannot be used as it is", [unseen])
        name, why = "tiny_cpu", "no GPU found"
    else:
        gib = torch.cuda.get_device_properties(0).total_memory / 2**30
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        name, why = recipe_for(gib, bfloat16), f"{torch.cuda.get_device_name(0)}, {gib:.0f} GiB"
        if not bfloat16:
            why = f"{why}, no bfloat16"
    if processes.is_main_process():
        print(f"recipe: configs/{name}.yaml ({why}); name another with --config", flush=True)
    return str(ROOT / "configs" / f"{name}.yaml")


def recipe_for(gib, bfloat16=True):
    """The name of the recipe for a card of so many GiB, with bfloat16 or without."""
    if gib < 20 or not bfloat16:
        return "qwen2.5-1.5b-lora-t4"
    return "qwen2.5-1.5b" if gib >= 70 else "qwen2.5-1.5b-lora-24gb"


def missing_files(recipe):
    """The last files written of the recipe's own model and data, as list[Path], where they are not there yet.

    Only what the recipe's `prepare` makes: what a flag points elsewhere is the user's own.
    """
    values, own = recipe.values, recipe.own
    if not values.prepare:
        return []
    files = []
    name = own.model_name_or_path
    if name and name == values.model_name_or_path and name.startswith("models/"):
        files.append(Path(name, "config.json"))
    if own.data_dir == values.data_dir:
        files.append(Path(own.data_dir, "test.parquet"))
    return [file for file in files if not file.exists()]


def make_missing(recipe):
    """Runs the recipe's `prepare` where its own data or model is missing. Exits where that fails.

    The first process of all machines does, and the others wait for its files: no lock of a file system that several
    machines share has to hold between them. The lock keeps out another run in the same folder, where it can.
    """
    if not missing_files(recipe):
        return
    if not processes.is_main_process():
        await_files(recipe)
        return
    prepare = recipe.values.prepare
    lock = FileLock(".prepare.lock", fallback_to_soft=False)
    try:
        lock.acquire()
    except OSError as error:  # a folder to read only, or on NFS without its lock service
        processes.stop(
            f"{Path.cwd()} cannot be locked ({error})", [f"type python {prepare}, and then start the run again"]
        )
    try:
        missing = missing_files(recipe)
        if missing:  # another run may have made them
            print(f"{' and '.join(map(str, missing))} not there yet: running python {prepare}", flush=True)
            run_prepare(prepare)
    finally:
        lock.release()


def run_prepare(prepare):
    """Runs the words (str) after `python` with this Python, from any folder. Exits where that fails."""
    script, *arguments = shlex.split(prepare)
    if script.endswith(".py"):
        script = str(ROOT / script)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}  # -m finds r1zero from any folder
    try:
        status = subprocess.run([sys.executable, script, *arguments], env=environment).returncode
    except KeyboardInterrupt:
        status = "interrupted"
    if status:
        processes.stop(f"python {prepare} failed ({status})", ["its own message is above"])


def await_files(recipe):
    """Waits until the first process has made what is missing, and says every minute what that is, once a machine.

    Over NFS a file is seen up to a minute later. A launcher ends this process where the first one fails.
    """
    seconds = 0
    while missing := missing_files(recipe):
        time.sleep(1)
        seconds += 1
        if processes.is_first_here() and seconds % 60 == 0:
            print(
                f"waiting for {' and '.join(map(str, missing))}, which the first machine makes; on one that does not "
                f"share its folder, type python {recipe.values.prepare}",
                flush=True,
            )


@dataclass
class Missing:
    """What a dry run knows of what `prepare` would make. None or [] stands for what only making it would tell.

    rows: training problems; prompts: list of the longest; config and tokenizer: transformers' objects.
    """

    data: bool = False
    model: bool = False
    rows: int | None = None
    prompts: list = field(default_factory=list)
    config: object = None
    tokenizer: object = None


def what_will_be_there(recipe, elsewhere=False):
    """The Missing of a recipe, of which nothing is made; says what a run would make. Exits where making would fail.

    elsewhere: whether that is for another machine.
    """
    files = missing_files(recipe)
    missing = Missing()
    if not files:
        return missing
    prepare = recipe.values.prepare
    if processes.is_main_process():
        folders = [str(file.parent) for file in files]
        be, them = ("is", "it") if len(folders) == 1 else ("are", "them")
        print(f"{' and '.join(folders)} {be} not there yet: a run would make {them} with python {prepare}", flush=True)
    names = [file.name for file in files]
    missing.data, missing.model = "test.parquet" in names, "config.json" in names
    script, *arguments = shlex.split(prepare)
    try:
        if script == "preprocess.py":
            missing.rows, missing.prompts = preprocess.planned(arguments, elsewhere)
        if [script, *arguments[:1]] == ["-m", "r1zero.tiny_model"]:
            found = tiny_model.planned(arguments[1:])
            missing.rows, missing.prompts, missing.config, missing.tokenizer = found
    except (OSError, ValueError) as error:
        processes.stop(f"python {prepare} would fail", [str(error)])
    return missing


@dataclass
class Strategy:
    """How a model is spread over the processes, as accelerate's launcher says it through the environment.

    shards: dict of the parts of a model to how many cards share one; offload: the parts that the CPU's memory holds.
    """

    name: str
    processes: int
    shards: dict
    deepspeed: bool = False
    offload: tuple = ()


def read_strategy(environment):
    """The Strategy of this process, from the variables (a mapping) that `accelerate launch` sets.

    Raises ValueError where they name a DeepSpeed file that cannot be read.
    """
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
    """The stage of ZeRO and the parts on the CPU, from accelerate's settings or from the DeepSpeed file they name.

    Everything is given to accelerate's plugin, which would otherwise read it from this process's own environment.
    """
    from accelerate.utils import DeepSpeedPlugin  # here, as it imports torch

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


def is_folder_name(name):
    """Whether the name of a model is a folder's: the hub is not asked for it, which offline means long retries.

    The hub has nobody called `models`.
    """
    if name.startswith((".", "/", "~", "models/")) or name.count("/") > 1:
        return True
    return "/" in name and Path(name).parent.is_dir()
