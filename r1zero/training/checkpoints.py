"""Checkpoints: which of a run's is the newest sound one, and what is wrong with the others.

Trainer writes a checkpoint file by file, takes the highest number to resume from without a look inside, and goes on
without an optimizer or a random state that is missing. So each save is sealed here with a list of checksums, and every
file is verified before anything is loaded.
"""

import errno
import json
import math
import re
import shutil
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from accelerate import PartialState
from transformers import TrainerCallback

from r1zero import schedule
from r1zero.files import broken_line, checksums, one_line, replaced

SEAL = "checksums.json"  # {"files": {name: [bytes, sha256]}}, written when all processes have saved
# Settings that a checkpoint decides, in the states of the optimizer and of Trainer, and the one that turns each on
DECIDED = dict.fromkeys(("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "optim"))
DECIDED |= dict.fromkeys(("use_peft", "lora_r", "lora_alpha", "lora_target_modules"))
DECIDED |= {"logging_steps": "logging_strategy", "save_steps": "save_strategy", "eval_steps": "eval_strategy"}
RANDOM_STATE = re.compile(r"rng_state(_\d+)?\.pth")


class Complete(Exception):
    """A run that is resumed has done all of its steps. Trainer itself would do one more."""


class Sealer(TrainerCallback):
    """Has no checkpoint begin for which the disk has no room, and seals each that all processes have saved.

    To be added after what asks for checkpoints. Raises Complete where a resumed run has no step left to do.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        """A resumed run begins with the evaluation that was due when it was stopped, and with no other."""
        if state.global_step == 0:
            return
        is_due = args.eval_strategy == "steps" and state.global_step % state.eval_steps == 0
        is_done = any(entry["step"] == state.global_step and "eval_reward" in entry for entry in state.log_history)
        args.eval_on_start = is_due and not is_done

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            raise Complete

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_save and state.is_world_process_zero:
            assert_room(Path(args.output_dir))

    def on_save(self, args, state, control, **kwargs):
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            seal(Path(args.output_dir, f"checkpoint-{state.global_step}"))
        PartialState().wait_for_everyone()  # which --ddp_timeout bounds, and not NCCL's own 10 minutes


def assert_room(output_dir):
    """Raises OSError where the disk has less room than the newest checkpoint takes."""
    saved = by_step(output_dir)
    if not saved:
        return  # the first one was estimated when the run was checked
    needed, free = size(saved[-1]), shutil.disk_usage(output_dir).free
    if free < needed:
        found = f"a checkpoint takes {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free"
        raise OSError(errno.ENOSPC, found, str(output_dir))


def by_step(output_dir):
    """The checkpoints of a run (list[Path]), the newest last."""
    numbered = {}
    for folder in Path(output_dir).glob("checkpoint-*"):
        number = folder.name.removeprefix("checkpoint-")
        if number.isascii() and number.isdigit() and folder.is_dir():
            numbered[int(number)] = folder
    return [numbered[step] for step in sorted(numbered)]


def files_of(checkpoint):
    """The files of a checkpoint (list[Path]), in a fixed order, without the seal."""
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and not path.name.startswith(SEAL))


def size(checkpoint):
    """Bytes that a checkpoint takes."""
    return sum(path.stat().st_size for path in files_of(checkpoint))


def expected_size(parameters, strategy):
    """Bytes that a checkpoint of a whole model takes; a tied head, which some strategies write out, is left out.

    strategy: a machine.Strategy.
    """
    each = 4 + 8  # the weights and AdamW's two moments, in float32
    if strategy.shards.get("weights", 1) > 1:
        each += 4  # ZeRO-3's copy of the weights beside the moments, or FSDP's in one file
    elif strategy.deepspeed:
        each += 4 + 4  # that copy, and what it computes with
    return each * parameters


def most_at_once(values, steps):
    """The most checkpoints that a run has on its disk at once. steps: of the whole run, None where not known.

    Trainer deletes the oldest one after it has written the newest.
    """
    written = math.ceil(values.num_train_epochs)
    if str(values.save_strategy) == "steps":
        every = values.save_steps if values.save_steps >= 1 else values.save_steps * (steps or 1)
        written = math.ceil((steps or 1) / every)
    if values.save_total_limit:
        written = min(written, values.save_total_limit + 1)
    return written


def room(values, parameters, rows, strategy, there=0):
    """What the checkpoints and the final model of a run take on its disk: in words, such as 3 checkpoints, and bytes.

    parameters: of the model; rows: training problems, or None; there: checkpoints that are on the disk already. No
    bytes where adapters alone are saved.
    """
    copies = max(1, most_at_once(values, schedule.schedule(values, rows, strategy.processes)["steps"]) - there)
    words = f"{copies} checkpoint{'s' * (copies > 1)}"
    if values.use_peft or str(values.save_strategy) == "no":
        return words, 0
    return words, expected_size(parameters, strategy) * copies + 4 * parameters


def seal(checkpoint):
    """Writes the list of a checkpoint's files, in one go. Whatever is not in it when it is read has been changed."""
    paths = files_of(checkpoint)
    files = {}
    for path, found in zip(paths, checksums(paths), strict=True):
        files[str(path.relative_to(checkpoint))] = [path.stat().st_size, found]
    with replaced(checkpoint / SEAL) as part:
        part.write_text(json.dumps({"files": files}, indent=1))


@dataclass
class Choice:
    """What --resume_from_checkpoint means: a checkpoint (Path), or None for a run from its beginning.

    notices: list[str], what is to be said of it; errors: list[str], why the run cannot go on.
    """

    checkpoint: Path | None = None
    notices: list = field(default_factory=list)
    errors: list = field(default_factory=list)


def choose(values, strategy):
    """The Choice of a run. strategy: its machine.Strategy.

    "true" and "auto" mean the newest sound checkpoint; where there is none, "auto" starts from the beginning.
    """
    given = values.resume_from_checkpoint
    if not given:
        return Choice()
    output_dir = Path(values.output_dir or "trainer_output")
    if given.lower() in ("true", "1", "yes", "auto"):
        found = newest_sound(output_dir, strategy.processes)
        if found.checkpoint is None and given.lower() != "auto":
            how = "leave out --resume_from_checkpoint, or pass --resume_from_checkpoint auto, to start"
            found.errors.append(f"{output_dir} holds no sound checkpoint to resume from: {how}")
    else:
        found = Choice(Path(given))
        wrong = faults(found.checkpoint, strategy.processes)
        if wrong:
            how = "name an earlier one, or pass --resume_from_checkpoint auto for the newest sound one"
            found.errors.append(f"checkpoint {given} would not go on as it was ({'; '.join(wrong)}): {how}")
        if by_step(output_dir) and found.checkpoint.resolve().parent != output_dir.resolve():
            found.errors.append(f"output_dir {output_dir} holds another run than {given} is of: name another")
    if found.checkpoint and not found.errors:
        check_processes(found, strategy)
        found.errors += decided_errors(found.checkpoint, values)
    return found


def decided_errors(checkpoint, values):
    """Settings that differ from those of the run that a checkpoint is of, and that it decides, as a list of lines."""
    path = checkpoint.parent / "config.yaml"
    try:
        before = dict(yaml.safe_load(path.read_text()))
    except FileNotFoundError:  # a checkpoint that was moved
        return []
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        return [f"{path} cannot be read ({one_line(error)}): remove it, to go on without its settings"]
    errors = []
    for name, strategy in DECIDED.items():
        old, new = before.get(name), getattr(values, name)
        is_used = strategy is None or str(getattr(values, strategy)) == "steps" == before.get(strategy)
        old, new = as_plain(old), as_plain(new)
        if is_used and None not in (old, new) and old != new:
            errors.append(
                f"{name} was {old} and is {new}, which {checkpoint.name} decides: leave it out, or start a run "
                f"from its weights, with --model_name_or_path {checkpoint} and another --output_dir"
            )
    return errors


def as_plain(value):
    """A setting without the forms that mean the same: an enum of its text, a list of one its element."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    return getattr(value, "value", value)


def newest_sound(output_dir, processes):
    """The Choice of the newest checkpoint of a run with which nothing is wrong. processes: those of this run."""
    found = Choice()
    for checkpoint in reversed(by_step(output_dir)):
        wrong = faults(checkpoint, processes)
        if not wrong:
            found.checkpoint = checkpoint
            break
        found.notices.append(f"{checkpoint} is damaged and passed over: {'; '.join(wrong)}")
    return found


def check_processes(found, strategy):
    """Adds to a Choice what follows where its checkpoint was saved by another number of processes."""
    saved = saved_by(found.checkpoint)
    if saved == strategy.processes:
        return
    line = f"{found.checkpoint} was saved by {saved} processes and this run has {strategy.processes}"
    if strategy.deepspeed:  # whose optimizer is in parts, one a process
        found.errors.append(f"{line}, which DeepSpeed cannot deal it to: start {saved}, with --num_processes {saved}")
    else:
        found.notices.append(f"{line}: it goes on, but with other random numbers than it would have had")


def faults(checkpoint, processes=1):
    """What is wrong with a checkpoint (list[str]), [] where it is sound. Reads all of it where it is sealed.

    processes: how many must have saved it at least, where no seal says so.
    """
    if not checkpoint.is_dir():
        return ["there is no such folder"]
    try:
        sealed = json.loads((checkpoint / SEAL).read_text())["files"]
        sealed = {name: (length, found) for name, (length, found) in sealed.items()}
    except FileNotFoundError:  # of an earlier version, or the process was killed just before
        return lacking(checkpoint, processes) or unreadable(checkpoint)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        return [f"{SEAL} cannot be read ({error})"]
    return lacking(checkpoint, 1) or changed(checkpoint, sealed)


def changed(checkpoint, sealed):
    """What differs from the list. sealed: {name: [bytes, SHA-256]}."""
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


def lacking(checkpoint, processes):
    """What a checkpoint of so many processes or more lacks. Without some of it Trainer would go on, and not say so."""
    wrong = []
    if not (checkpoint / "trainer_state.json").is_file():
        wrong.append("no trainer_state.json")
    saved = saved_by(checkpoint)
    if (checkpoint / "rng_state_0.pth").is_file():
        processes = max(2, processes)
    if saved < processes:
        wrong.append(f"the random state of {saved} of {processes} processes")
    if list(checkpoint.glob("global_step*")):
        return wrong + lacking_of_deepspeed(checkpoint, max(saved, processes))
    if not list(checkpoint.glob("optimizer*")):  # a file, or FSDP's folder
        wrong.append("no optimizer")
    return wrong


def lacking_of_deepspeed(checkpoint, processes):
    """DeepSpeed has a folder for each save, named in `latest`, and in it a file of the optimizer for each process."""
    try:
        folder = checkpoint / (checkpoint / "latest").read_text().strip()
    except OSError:
        return ["no latest, which names DeepSpeed's folder"]
    found = len(list(folder.glob("*optim_states.pt")))
    if found < processes:
        return [f"{folder.name} has the optimizer of {found} of {processes} processes"]
    return []


def saved_by(checkpoint):
    """How many processes have saved a checkpoint: each its own random state."""
    found = [RANDOM_STATE.fullmatch(path.name) for path in checkpoint.glob("rng_state*")]
    return len([match for match in found if match])


def unreadable(checkpoint):
    """The files of a checkpoint that are not whole, as far as their own tables of contents say so."""
    names = [path.relative_to(checkpoint) for path in files_of(checkpoint) if not is_whole(path)]
    return [f"{name} is cut short" for name in names]


def is_whole(path):
    """Whether a file is all there, by the header of safetensors or the directory at the end of torch's files."""
    if path.suffix == ".safetensors":
        return broken_line(path) is None
    if path.suffix in (".pt", ".pth", ".bin"):
        return zipfile.is_zipfile(path)
    if path.suffix != ".json":
        return True
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True


def newest_name(output_dir):
    """The name of a run's newest sound checkpoint (str), or None. What is sealed is taken to be sound."""
    for checkpoint in reversed(by_step(output_dir)):
        if (checkpoint / SEAL).is_file():
            return checkpoint.name
    return None
