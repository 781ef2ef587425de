"""How a run ends before its last step: in order, with a checkpoint, one line and a status of its own.

The first Ctrl-C, a SIGTERM or a SIGUSR1 (which Slurm sends before the time is up) is noted. At the next step from
which a run can be resumed exactly, all processes save a checkpoint and end. A second Ctrl-C stops at once.
"""

import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import reduce, send_to_device
from safetensors import SafetensorError
from transformers import TrainerCallback

from r1zero import schedule
from r1zero.files import is_full, one_line
from r1zero.processes import end_with_parent, is_launched
from r1zero.training import checkpoints
from r1zero.training.nan_guard import BadNumber

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
STOPPED = 75  # the status of a run that can go on: EX_TEMPFAIL of sysexits.h, try again later
AT_ONCE = 130  # the status after a second Ctrl-C, as of any program that Ctrl-C ends
ECHO = 2.0  # seconds within which a second signal is the first one, which a launcher has handed on
HOW = "--resume_from_checkpoint auto goes on"


@dataclass
class Ending:
    """Why a run ended early, as a line, and the status that it exits with.

    line: None where another process says it; together: whether all processes have come to the same end.
    """

    line: str | None
    status: int
    together: bool = False


class Signals(TrainerCallback):
    """Ends training in order after one of SIGNALS. To be entered as a context, which the signals act in."""

    def __init__(self):
        self.name = None  # of the first signal, once it has come
        self.came = None  # when, in seconds of the clock
        self.stepped = False  # whether this process has done a step
        self.ended_at = None  # the step, once training has been ended
        self.before = {}  # {signal: its handler outside this context}

    def __enter__(self):
        for number in SIGNALS:
            self.before[number] = signal.signal(number, self.note)
        # A launcher of one process hands nothing on, and is gone at once
        if sys.platform == "linux" and is_launched(os.environ):
            end_with_parent(signal.SIGTERM)
        return self

    def __exit__(self, *_):
        if self.name is not None:  # the page is still to be written, and a launcher may send more
            return
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number, _):
        """Notes the first signal. A Ctrl-C after it raises KeyboardInterrupt, where it is none that was handed on."""
        if self.name == "SIGINT" and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            number = signal.SIGINT  # the launcher of several processes makes a SIGTERM of a second Ctrl-C
        now = time.monotonic()
        if self.name is None:
            self.name, self.came = signal.Signals(number).name, now
            if int(os.environ.get("RANK", 0)) == 0:
                # print may have been interrupted itself
                os.write(2, f"\n{self.name}: ending after a checkpoint; Ctrl-C again stops at once\n".encode())
        elif number == signal.SIGINT and now > self.came + ECHO:
            raise KeyboardInterrupt

    def on_step_end(self, args, state, control, **kwargs):
        self.stepped = True
        if self.end(args, state, control):
            control.should_evaluate = False  # the resumed run begins with that evaluation

    def on_evaluate(self, args, state, control, **kwargs):
        self.end(args, state, control)

    def end(self, args, state, control):
        """Ends training, with a checkpoint, if it is to end and can end here. Returns whether it does."""
        # All processes have to agree, and a signal may come to one of them before this moment and to another after
        noted = torch.tensor(float(self.name is not None), device=PartialState().device)
        is_wanted = reduce(noted, "sum").item() > 0
        in_generation = state.global_step % schedule.span(args)
        if not is_wanted or not self.stepped or in_generation or state.global_step >= state.max_steps:
            return False
        control.should_training_stop = True
        control.should_save = args.save_strategy != "no"
        self.ended_at = state.global_step
        return True

    def ending(self, output_dir):
        """The Ending that a signal led to, or None."""
        if self.ended_at is None:
            return None
        why = f"stopped by {self.name or 'a signal'} at step {self.ended_at}"
        return Ending(f"{why}: {how_to_go_on(output_dir)}", STOPPED, together=True)


# What ends a run in order, where it is raised
EXPECTED = (KeyboardInterrupt, BadNumber, OSError, RuntimeError, SafetensorError)


def how_to_go_on(output_dir):
    """What to type to go on with a run, and from where (str)."""
    name = checkpoints.newest_name(output_dir)
    return f"{HOW} from {name}" if name else "there is no checkpoint to go on from"


def explain(error, output_dir, step):
    """The Ending that one of EXPECTED leads to. Raises it again where it is none that a user can do something about.

    Exits where nothing can be written any more.
    """
    if isinstance(error, KeyboardInterrupt):
        return Ending(f"stopped at once in step {step + 1}: {how_to_go_on(output_dir)}", AT_ONCE)
    if isinstance(error, BadNumber):
        if error.batch is None:
            return Ending(None, 1, together=True)
        path = save_batch(error.batch, output_dir, step)
        line = f"{error}, in step {step + 1}; what it came of is in {path}, for torch.load; {how_to_go_on(output_dir)}"
        return Ending(line if error.is_told else None, 1, together=True)
    if is_full(error):
        saved = checkpoints.by_step(output_dir)
        needed = f" {checkpoints.size(saved[0]) / 1e6:,.0f} MB for a checkpoint" if saved else " some of that disk"
        line = f"{output_dir} cannot be written to in step {step + 1} ({one_line(error)}): free{needed}, and then "
        leave(Ending(line + how_to_go_on(output_dir), 1))
    raise error


def leave(ending):
    """Exits with an Ending's status and its line, which the main process says where all have come to it."""
    if ending.line and (PartialState().is_main_process or ending.status == 1):
        print(f"\ntrain_countdown.py: {ending.line}", file=sys.stderr, flush=True)  # below the progress bar
    sys.exit(ending.status)


@contextlib.contextmanager
def in_one_line():
    """Ends the program with one line after Ctrl-C, and where a disk is full, at any time but while it trains."""
    try:
        yield
    except KeyboardInterrupt:
        print("\ntrain_countdown.py: stopped by Ctrl-C", file=sys.stderr)
        sys.exit(AT_ONCE)
    except EXPECTED as error:
        if not is_full(error):
            raise
        sys.exit(f"\ntrain_countdown.py: {one_line(error)}: free some of that disk, and then {HOW}")


def save_batch(batch, output_dir, step):
    """Saves what a bad number came of. Returns its Path."""
    path = Path(output_dir, f"bad_number_step{step + 1}_process{PartialState().process_index}.pt")
    torch.save(send_to_device(batch, "cpu"), path)  # which a machine without a GPU can read too
    return path
