"""Seal checkpoints, find the newest sound one, and say what is wrong with the others.

Trainer writes a checkpoint file by file. It resumes from the highest number without a look inside, and continues
without a missing optimizer or random state. So each save gets a list of checksums here, the seal, and every file is
verified before anything is loaded.
"""

import errno
import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from accelerate import PartialState
from transformers import TrainerCallback

from r1zero.files import checksums, one_line, replaced

SEAL = "checksums.json"  # {"files": {name: [bytes, sha256]}}, written when all processes have saved
# Settings that Trainer restores from a checkpoint, so that a new value has no effect; and the strategy that uses each
DECIDED = dict.fromkeys(("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "optim"))
DECIDED |= dict.fromkeys(("use_peft", "lora_r", "lora_alpha", "lora_target_modules"))
DECIDED |= {"logging_steps": "logging_strategy", "save_steps": "save_strategy", "eval_steps": "eval_strategy"}
# Learning rates that do not depend on the steps of the run
ENDLESS = ("constant", "constant_with_warmup", "inverse_sqrt", "reduce_lr_on_plateau", "greedy")
NAME = re.compile(r"checkpoint-([0-9]+)")
RANDOM_STATE = re.compile(r"rng_state(_\d+)?\.pth")


class Complete(Exception):
    """Raised if a resumed run has done all of its steps. Trainer itself would do one more."""


class Sealer(TrainerCallback):
    """Seals each checkpoint that all processes have saved, and stops the run before one that the disk cannot hold.

    Add it after the callbacks that ask for checkpoints. Raises Complete if a resumed run has no step left, and OSError
    if the disk is too full.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        """Begin a resumed run with the evaluation that was due when it was stopped, and with no other."""
        if state.global_step == 0:
            return
        is_due = args.eval_strategy == "steps" and state.global_step % state.eval_steps == 0
        is_done = any(entry["step"] == state.global_step and "eval_reward" in entry for entry in state.log_history)
        args.eval_on_start = is_due and not is_done

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            raise Complete

    def on_step_end(self, args, state, control, **kwargs):
        saved = by_step(args.output_dir) if control.should_save and state.is_world_process_zero else []
        if not saved:
            return  # preflight has estimated the first one
        needed, free = size(saved[-1]), shutil.disk_usage(args.output_dir).free
        if free < needed:
            found = f"a checkpoint takes {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free"
            raise OSError(errno.ENOSPC, found, args.output_dir)

    def on_save(self, args, state, control, **kwargs):
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            seal(Path(args.output_dir, f"checkpoint-{state.global_step}"))
        PartialState().wait_for_everyone()  # --ddp_timeout bounds it, not NCCL's own 10 minutes


def by_step(output_dir):
    """Return the checkpoints of a run (list[Path]), the newest last."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(NAME.fullmatch(path.name)[1]))


def files_of(checkpoint):
    """Return the files of a checkpoint without its seal (list[Path]), sorted."""
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and not path.name.startswith(SEAL))


def size(checkpoint):
    """Return the bytes that a checkpoint takes."""
    return sum(path.stat().st_size for path in files_of(checkpoint))


def seal(checkpoint):
    """Write the seal of a checkpoint: the size and SHA-256 of each file."""
    paths = files_of(checkpoint)
    files = {
        str(path.relative_to(checkpoint)): [path.stat().st_size, found]
        for path, found in zip(paths, checksums(paths), strict=True)
    }
    with replaced(checkpoint / SEAL) as part:
        part.write_text(json.dumps({"files": files}, indent=1))


@dataclass
class Choice:
    """Holds what --resume_from_checkpoint means: a checkpoint (Path), or None for a run from its beginning.

    notices: lines to print; errors: lines that say why the run cannot be resumed.
    """

    checkpoint: Path | None = None
    notices: list = field(default_factory=list)
    errors: list = field(default_factory=list)


def choose(values, strategy, steps=None):
    """Return the Choice for a run. values: every setting; strategy: its machine.Strategy; steps: of it, if known.

    "true" and "auto" mean the newest sound checkpoint. If there is none, "auto" starts from the beginning.
    """
    given = values.resume_from_checkpoint
    if not given:
        return Choice()
    output_dir = Path(values.output_dir or "trainer_output")
    found = Choice()
    if given.lower() in ("true", "1", "yes", "auto"):
        for checkpoint in reversed(by_step(output_dir)):
            wrong = faults(checkpoint, strategy.processes)
            if not wrong:
                found.checkpoint = checkpoint
                break
            found.notices.append(f"{checkpoint} is damaged and passed over: {'; '.join(wrong)}")
        if found.checkpoint is None and given.lower() != "auto":
            how = "leave out --resume_from_checkpoint, or pass --resume_from_checkpoint auto, to start"
            found.errors.append(f"{output_dir} holds no sound checkpoint to resume from: {how}")
    else:
        found.checkpoint = Path(given)
        wrong = faults(found.checkpoint, strategy.processes)
        if wrong:
            how = "name an earlier one, or pass --resume_from_checkpoint auto for the newest sound one"
            found.errors.append(f"checkpoint {given} would not resume exactly ({'; '.join(wrong)}): {how}")
        if by_step(output_dir) and found.checkpoint.resolve().parent != output_dir.resolve():
            found.errors.append(f"output_dir {output_dir} holds another run than {given} is of: name another")
    if found.checkpoint and not found.errors:
        check_processes(found, strategy)
        found.errors += decided_errors(found.checkpoint, values) + extension_errors(found.checkpoint, values, steps)
    return found


def extension_errors(checkpoint, values, steps):
    """Return an error line if a run whose learning rate has come to its end would get more steps."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    if steps is None or not state["max_steps"] <= state["global_step"] < steps:
        return []
    scheduler = as_plain(values.lr_scheduler_type)
    if scheduler in ENDLESS:
        return []
    return [
        f"{checkpoint.name} ended a run of {state['max_steps']} steps, and with {steps} its {scheduler} learning rate "
        f"would jump up again: start a run from its weights, with --model_name_or_path {checkpoint} and another "
        "--output_dir"
    ]


def decided_errors(checkpoint, values):
    """Return an error line for each setting that the checkpoint restores and that has another value now."""
    path = checkpoint.parent / "config.yaml"
    try:
        before = dict(yaml.safe_load(path.read_text()))
    except FileNotFoundError:  # the checkpoint was moved
        return []
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        return [f"{path} cannot be read ({one_line(error)}): remove it to resume without its settings"]
    errors = []
    for name, strategy in DECIDED.items():
        old, new = before.get(name), getattr(values, name)
        is_used = strategy is None or getattr(values, strategy) == "steps" == before.get(strategy)
        old, new = as_plain(old), as_plain(new)
        if is_used and None not in (old, new) and old != new:
            errors.append(
                f"{name} was {old} and is {new}, but {checkpoint.name} decides it: leave it out, or start a run "
                f"from its weights, with --model_name_or_path {checkpoint} and another --output_dir"
            )
    return errors


def as_plain(value):
    """Return a setting in one form: the text of an enum, the element of a list of one."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    return getattr(value, "value", value)


def check_processes(found, strategy):
    """Add a notice or an error to a Choice if another number of processes saved its checkpoint."""
    saved = saved_by(found.checkpoint)
    if saved == strategy.processes:
        return
    line = f"{found.checkpoint} was saved by {saved} processes and this run has {strategy.processes}"
    if strategy.deepspeed:  # its optimizer is in shards, one for each process
        found.errors.append(
            f"{line}, and DeepSpeed cannot change its shards: start {saved}, with --num_processes {saved}"
        )
    else:
        found.notices.append(f"{line}: it resumes, but with other random numbers")


def faults(checkpoint, processes=1):
    """Return what is wrong with a checkpoint (list[str]), [] if it is sound. Reads all of a sealed one.

    processes: how many must have saved it at least, if it has no seal.
    """
    if not checkpoint.is_dir():
        return ["there is no such folder"]
    try:
        sealed = json.loads((checkpoint / SEAL).read_text())["files"]
        sealed = {name: (length, found) for name, (length, found) in sealed.items()}
    except FileNotFoundError:  # killed before it was sealed, when Trainer may have deleted the checkpoint before it
        return [] if is_saved(checkpoint, processes) else [f"no {SEAL}, and not all of it was saved"]
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        return [f"{SEAL} cannot be read ({error})"]
    return changed(checkpoint, sealed)


def is_saved(checkpoint, processes):
    """Return whether so many processes have saved a checkpoint. The main one writes trainer_state.json last."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return saved_by(checkpoint) >= processes


def changed(checkpoint, sealed):
    """Return what differs from the seal (list[str]). sealed: {name: (bytes, SHA-256)}."""
    wrong, whole = [], []
    for name, (length, _) in sealed.items():
        path = checkpoint / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif path.stat().st_size != length:
            wrong.append(f"{name} has {path.stat().st_size:,} bytes instead of {length:,}")
        else:
            whole.append(name)
    for name, found in zip(whole, checksums([checkpoint / name for name in whole]), strict=True):
        if found != sealed[name][1]:
            wrong.append(f"{name} has changed since it was saved")
    return wrong


def saved_by(checkpoint):
    """Return how many processes have saved a checkpoint (int). Each saves its own random state."""
    return sum(RANDOM_STATE.fullmatch(path.name) is not None for path in checkpoint.glob("rng_state*"))


def newest_name(output_dir):
    """Return the name of a run's newest sealed checkpoint (str), or None. It is not verified."""
    sealed = [checkpoint.name for checkpoint in by_step(output_dir) if (checkpoint / SEAL).is_file()]
    return sealed[-1] if sealed else None
