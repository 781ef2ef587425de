"""End a run in order before its last step: with a checkpoint, one line and its own exit status.

The first Ctrl-C, SIGTERM or SIGUSR1 (Slurm sends it before the time limit) is noted. After the last step of the
generation in progress all ranks save a checkpoint and end, as a run resumes exactly only from there. A second Ctrl-C
stops at once.
"""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback

from r1zero import processes, schedule
from r1zero.files import is_full, one_line
from r1zero.training import checkpoints
from r1zero.training.nan_guard import BadNumber

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
STOPPED = 75  # exit status of a run that can be resumed: EX_TEMPFAIL of sysexits.h, try again later
AT_ONCE = 130  # exit status after a second Ctrl-C, as of any program that Ctrl-C ends
ECHO = 2.0  # seconds: a second signal within them is the first one, forwarded by a launcher
HOW = "--resume_from_checkpoint auto goes on"


class Stopping(TrainerCallback):
    """Ends a trainer's run in order after one of SIGNALS or an expected error.

    Enter it as a context around the training. It catches signals and errors there. Afterwards `line` says why the run
    ended early and `status` is its exit status, both None if it did not. leave() ends the program with them.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.output_dir = Path(trainer.args.output_dir)
        self.status = None
        self.line = None  # also None if another rank prints it
        self.together = True  # whether all ranks have come to the same end
        self.name = None  # of the first signal
        self.came = None  # its time, in seconds of the clock
        self.stepped = False  # whether this process has done a step
        self.ended_at = None  # the last step of an ended training
        self.before = {}  # {signal: its handler outside this context}

    @property
    def is_early(self):
        """Return whether the run has ended, or is about to end, before its last step."""
        return self.status is not None or self.ended_at is not None

    def __enter__(self):
        for number in SIGNALS:
            self.before[number] = signal.signal(number, self.note)
        # A launcher of one process forwards no signal, and ends at once
        if sys.platform == "linux" and processes.is_launched(os.environ):
            processes.end_with_parent(signal.SIGTERM)
        return self

    def __exit__(self, kind, error, traceback):
        if self.name is None:  # after a signal the page is still to be written, and a launcher may send more
            for number, handler in self.before.items():
                signal.signal(number, handler)
        step = self.trainer.state.global_step + 1
        if self.ended_at is not None and error is None:
            self.status = STOPPED
            why = f"stopped by {self.name or 'a signal'} at step {self.ended_at}"
            self.line = f"{why}: {how_to_go_on(self.output_dir)}"
        elif isinstance(error, KeyboardInterrupt):
            self.status, self.together = AT_ONCE, False
            self.line = f"stopped at once in step {step}: {how_to_go_on(self.output_dir)}"
        elif isinstance(error, BadNumber):
            self.status = 1
            if str(error):
                self.line = f"{error}, in step {step}; {how_to_go_on(self.output_dir)}"
        elif error is not None and is_full(error):
            self.status, self.together = 1, False
            saved = checkpoints.by_step(self.output_dir)
            needed = f" {checkpoints.size(saved[0]) / 1e6:,.0f} MB for a checkpoint" if saved else " some of that disk"
            found = f"{self.output_dir} cannot be written to in step {step} ({one_line(error)})"
            self.line = f"{found}: free{needed}, and then {how_to_go_on(self.output_dir)}"
            self.leave()  # as nothing can be written any more
        return self.status is not None

    def leave(self):
        """Wait for all ranks. If the run ended early, print its line once and exit with its status."""
        if self.together:  # a rank that exits early kills rank 0 while it writes the page
            self.trainer.accelerator.wait_for_everyone()
            self.trainer.accelerator.end_training()
        if self.status is None:
            return
        if self.line and (PartialState().is_main_process or self.status == 1):
            print(f"\ntrain_countdown.py: {self.line}", file=sys.stderr, flush=True)  # below the progress bar
        sys.exit(self.status)

    def note(self, number, _):
        """Note the first signal. A Ctrl-C after it raises KeyboardInterrupt, unless it is an echo of the first."""
        if self.name == "SIGINT" and processes.count() > 1:
            number = signal.SIGINT  # the launcher of several processes turns a second Ctrl-C into a SIGTERM
        now = time.monotonic()
        if self.name is None:
            self.name, self.came = signal.Signals(number).name, now
            if processes.is_main_process():
                # print is not reentrant, and the signal may have interrupted it
                os.write(2, f"\n{self.name}: ending after a checkpoint; Ctrl-C again stops at once\n".encode())
        elif number == signal.SIGINT and now > self.came + ECHO:
            raise KeyboardInterrupt

    def on_step_end(self, args, state, control, **kwargs):
        self.stepped = True
        if self.end(args, state, control):
            control.should_evaluate = False  # a resumed run begins with that evaluation

    def on_evaluate(self, args, state, control, **kwargs):
        self.end(args, state, control)

    def end(self, args, state, control):
        """End training with a checkpoint after a signal, if it resumes exactly from here. Return whether it did."""
        # All ranks have to agree: a signal may reach one of them before this moment and another after it
        noted = torch.tensor(float(self.name is not None), device=PartialState().device)
        is_wanted = reduce(noted, "sum").item() > 0
        in_generation = state.global_step % schedule.span(args)
        if not is_wanted or not self.stepped or in_generation or state.global_step >= state.max_steps:
            return False
        control.should_training_stop = True
        control.should_save = args.save_strategy != "no"
        self.ended_at = state.global_step
        return True


def how_to_go_on(output_dir):
    """Return what to type to resume a run, with the checkpoint's name (str)."""
    name = checkpoints.newest_name(output_dir)
    return f"{HOW} from {name}" if name else "there is no checkpoint to go on from"


@contextlib.contextmanager
def refused_in_one_line():
    """End the program with one line for what a library refuses when the trainer is built."""
    try:
        yield
    except (ImportError, NotImplementedError, OSError, ValueError) as error:
        if is_full(error):
            raise
        processes.stop("the trainer cannot be built", [f"{type(error).__name__}: {one_line(error)}"])


@contextlib.contextmanager
def in_one_line():
    """End the program with one line after Ctrl-C or for a full disk, outside of training."""
    try:
        yield
    except KeyboardInterrupt:
        print("\ntrain_countdown.py: stopped by Ctrl-C", file=sys.stderr)
        sys.exit(AT_ONCE)
    except Exception as error:
        if not is_full(error):
            raise
        sys.exit(f"\ntrain_countdown.py: {one_line(error)}: free some of that disk, and then {HOW}")
