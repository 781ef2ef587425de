"""What the console shows while a run goes on: a progress bar, one aligned line a logging step, now and then a whole
completion, and, once each, warnings of what ruins runs.
"""

import math
import time
import warnings
from pathlib import Path

import pyarrow.parquet as pq
from transformers.trainer_callback import ProgressCallback

import plan
import record
from rewards import completion_text

warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # TRL's, at every step

WINDOW = 20  # optimizer steps that something must last before it is warned of
COLUMNS = {  # metric: name and form in the line
    "reward": ("reward", "{:6.3f}"),
    "accuracy": ("accuracy", "{:6.1%}"),
    "completions/mean_length": ("length", "{:6.0f}"),
    "entropy": ("entropy", "{:6.3f}"),
    "frac_reward_zero_std": ("no signal", "{:4.0%}"),
}


class Live(ProgressCallback):
    """Transformers' progress bar, with a line for people where it prints a dictionary.

    held_out: problems in an evaluation; price_per_hour: of the whole machine, or None; show_every: optimizer steps
    between two whole completions, 0 for none; format_reward: the reward that a right format alone gets.
    """

    def __init__(self, held_out, price_per_hour=None, show_every=0, format_reward=0.1):
        super().__init__()
        self.held_out, self.price_per_hour, self.show_every = held_out, price_per_hour, show_every
        self.started = time.monotonic()  # seconds of the clock, less those that the run took before it was resumed
        self.keep_next = 0.0
        self.warnings = Warnings(format_reward)
        self.shown = 0

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        now, step = time.monotonic(), state.global_step
        self.started = now - record.seconds_before(Path(args.output_dir), step)
        self.first = self.last = (now, step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or self.training_bar is None:
            return
        if "eval_reward" in logs:
            metrics = {name.removeprefix("eval_"): value for name, value in logs.items() if "zero_std" not in name}
            self.training_bar.write(f"step {state.global_step:>5}/{state.max_steps}  {values(metrics)}  held out")
        elif "reward" in logs:
            now, step = time.monotonic(), state.global_step
            seconds = (now - self.last[0]) / max(1, step - self.last[1])
            self.last = now, step
            tokens = args.generation_batch_size * (logs.get("completions/mean_length") or 0) / plan.span(args)
            per_step = (now - self.first[0]) / max(1, step - self.first[1])
            left = (state.max_steps - step) * per_step
            line = f"step {step:>5}/{state.max_steps}  {values(logs)}  {seconds:6.2f} s/step  "
            line += f"{tokens / seconds:7,.0f} tok/s  left {clock(left)}"
            if self.price_per_hour:
                spent, all_of_it = ((self.seconds() + more) / 3600 * self.price_per_hour for more in (0, left))
                line += f"  cost {spent:,.2f} of {all_of_it:,.2f}"
            self.training_bar.write(line)
            for warning in self.warnings.see(step, logs):
                self.training_bar.write(f"WARNING at step {step}: {warning}")
        # What report.py reads while the run goes on; the more often the less time it takes, 1 % at most
        if (now := time.monotonic()) >= self.keep_next:
            self.keep(args, state)
            self.keep_next = now + 100 * (time.monotonic() - now)

    def keep(self, args, state):
        record.keep(Path(args.output_dir), state, args, self.held_out, self.seconds())

    def seconds(self):
        """Since training began, in all processes that the run was resumed by."""
        return time.monotonic() - self.started

    def on_step_begin(self, args, state, control, **kwargs):
        """Shows the first completion of the newest table, which TRL writes after it has logged."""
        due = self.show_every and state.global_step >= self.shown + self.show_every
        table = Path(args.output_dir, "completions", f"completions_{state.global_step:05d}.parquet")
        if due and state.is_world_process_zero and table.is_file():
            self.shown = state.global_step
            row = pq.read_table(table).slice(0, 1).to_pylist()[0]
            self.training_bar.write(show(row))


def values(logs):
    """The metrics of a line, those of COLUMNS that there are."""
    found = [(name, form, logs.get(metric)) for metric, (name, form) in COLUMNS.items()]
    return "  ".join(f"{name} {form.format(value)}" for name, form, value in found if value is not None)


def clock(seconds):
    """Hours, minutes and seconds: 5h37m, 4m05s."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{seconds:02d}s"


def show(row):
    """A row of the table of completions as TinyZero prints one: the problem, the answer, the verdict, the text."""
    left_out = ("step", "prompt", "completion", "advantage")
    facts = [f"{name}: {value}" for name, value in row.items() if name not in left_out and value is not None]
    return "\n".join(["-" * 80, *facts, "completion:", completion_text(row["completion"]), "-" * 80])


class Warnings:
    """What is going wrong, said once each, with the reading and what to try."""

    def __init__(self, format_reward=0.1):
        self.format_reward, self.said, self.history, self.first = format_reward, set(), [], None

    def see(self, step, logs):
        """Yields the warnings that the metrics of this logging step bring. step: the optimizer step they reach to."""
        self.first = self.first or (step, logs)
        self.history = [(at, seen) for at, seen in self.history if at > step - 2 * WINDOW] + [(step, logs)]
        if step < self.first[0] + WINDOW:
            return
        for name, holds, text in self.readings(step):
            if holds and name not in self.said:
                self.said.add(name)
                yield text

    def readings(self, step):
        """(name, whether it holds, what to say) of each warning, over the last WINDOW steps and the WINDOW before."""

        def mean(metric, begin=step - WINDOW, end=step):
            found = [seen[metric] for at, seen in self.history if begin < at <= end and seen.get(metric) is not None]
            return sum(found) / len(found) if found else math.nan  # of which no comparison holds

        def before(metric):
            return mean(metric, step - 2 * WINDOW, step - WINDOW)

        def at_first(metric):
            return self.first[1].get(metric) or 0

        reward, accuracy, entropy = mean("reward"), mean("accuracy"), mean("entropy")
        truncated, operators = mean("completions/clipped_ratio"), mean("times_divide_rate")
        yield (
            "signal",
            mean("frac_reward_zero_std") == 1,
            f"no group had two different rewards for {WINDOW} steps, so nothing is learned: try easier problems, more "
            "num_generations or a higher temperature",
        )
        yield (
            "format",
            abs(reward - self.format_reward) < 0.005 and accuracy < 0.005,
            f"the reward stands at {reward:.3f}, which the format alone gets: try a larger model, easier problems or "
            "more num_generations",
        )
        yield (
            "entropy",
            entropy < 0.1 * at_first("entropy"),
            f"entropy fell from {at_first('entropy'):.2f} to {entropy:.3f} nats, so little is explored: try a smaller "
            "learning_rate or a larger beta, from an earlier checkpoint",
        )
        yield (
            "truncation",
            truncated > 0.5,
            f"{truncated:.0%} of the completions are cut off: raise max_completion_length, or look whether they "
            "repeat themselves",
        )
        yield (
            "hacking",
            accuracy < before("accuracy") - 0.02 and reward > before("reward") + 0.02,
            f"accuracy fell from {before('accuracy'):.1%} to {accuracy:.1%} while the reward rose to {reward:.3f}: "
            "read the completions, something else than right answers is rewarded",
        )
        yield (
            "operators",
            operators < 0.25 * at_first("times_divide_rate"),
            f"answers with * or / fell from {at_first('times_divide_rate'):.0%} to {operators:.0%}, and sums alone "
            "solve half of Countdown: try a smaller learning_rate or a larger beta, from an earlier checkpoint",
        )
