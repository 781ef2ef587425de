"""Show a run on the console: a progress bar, one aligned line a logging step, some whole completions, and warnings."""

import math
import time
import warnings
from pathlib import Path

import pyarrow.parquet as pq
from transformers.trainer_callback import ProgressCallback

from r1zero import schedule
from r1zero.grading.extract import completion_text
from r1zero.report import run_folder
from r1zero.report.completions import visible

WINDOW = 20  # optimizer steps over which a warning takes its means
COLUMNS = {  # metric: its name and form in the line
    "reward": ("reward", "{:6.3f}"),
    "accuracy": ("accuracy", "{:6.1%}"),
    "completions/mean_length": ("length", "{:6.0f}"),
    "entropy": ("entropy", "{:6.3f}"),
    "frac_reward_zero_std": ("no signal", "{:4.0%}"),
}
LONGEST_SHOWN = 10_000  # characters of a completion, and of each other column
NOT_SHOWN = ("step", "prompt", "completion", "advantage")  # columns of the table of completions


class Console(ProgressCallback):
    """Shows transformers' progress bar, with an aligned line instead of a dictionary.

    scorers: the run's reward functions (training/reward_functions.py); held_out: problems in an evaluation;
    price_per_hour: of the whole machine, or None; show_every: optimizer steps between two whole completions, 0 for
    none.
    """

    def __init__(self, scorers, held_out, price_per_hour=None, show_every=0):
        super().__init__()
        self.scorers = scorers
        self.held_out = held_out
        self.price_per_hour = price_per_hour
        self.show_every = show_every
        self.warnings = Warnings(min((s.format_reward for s in scorers if s.format_reward is not None), default=None))
        self.started = time.monotonic()  # seconds of the clock, less those of the run before it was resumed
        self.next_save = 0.0  # time of the next save of the results, in seconds of the clock
        self.shown = 0  # step of the last completion that was shown

    def on_train_begin(self, args, state, control, train_dataloader=(), **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        # TRL makes transformers print it at every step
        warnings.filterwarnings("ignore", message="`(is_)?gradient_checkpointing.* is deprecated")
        now = time.monotonic()
        self.started = now - run_folder.seconds_before(Path(args.output_dir), state.global_step)
        self.first = self.last = (now, state.global_step)
        self.an_epoch = len(train_dataloader)  # micro-batches, as for schedule.generations

    def show(self, phase):
        """Show what goes on (str) behind the progress bar, on a terminal: in a file each change would be a line."""
        if self.training_bar is not None and self.training_bar.fp.isatty():
            self.training_bar.set_postfix_str(phase)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Write the line of an evaluation or of a step, warn of what goes wrong, and save the results so far."""
        if not state.is_world_process_zero or self.training_bar is None:
            return
        if "eval_reward" in logs:
            self.training_bar.write(evaluation_line(state, logs, self.own_metrics()))
        elif "reward" in logs:
            self.training_bar.write(self.training_line(args, state, logs))
            for warning in self.warnings.see(state.global_step, logs):
                self.training_bar.write(f"WARNING at step {state.global_step}: {warning}")
        self.save_now_and_then(args, state)

    def training_line(self, args, state, logs):
        """Return the line of a logging step: its metrics, speed, the time left, the cost."""
        now, step = time.monotonic(), state.global_step
        (first_time, first_step), (last_time, last_step) = self.first, self.last
        self.last = (now, step)
        seconds_a_step = (now - last_time) / max(1, step - last_step)
        completions_a_step = args.generation_batch_size / schedule.span(args)
        tokens_a_step = completions_a_step * (logs.get("completions/mean_length") or 0)
        # At the mean speed of this process, evaluations included
        seconds_left = (state.max_steps - step) * ((now - first_time) / max(1, step - first_step))
        parts = [
            *line_start(state, logs),
            f"{seconds_a_step:6.2f} s/step",
            f"{tokens_a_step / seconds_a_step:7,.0f} tok/s",
            f"left {clock(seconds_left)}",
        ]
        if self.price_per_hour:
            spent = (now - self.started) / 3600 * self.price_per_hour
            parts.append(f"cost {spent:,.2f} of {spent + seconds_left / 3600 * self.price_per_hour:,.2f}")
        return "  ".join([*parts, *own_values(logs, self.own_metrics())])

    def own_metrics(self):
        """Return the metrics (list[str]) that a user's reward functions have logged so far."""
        return sorted(set().union(*(scorer.own_metrics for scorer in self.scorers)))

    def save_now_and_then(self, args, state):
        """Save what the report reads, in at most 1 % of the run's time.

        The files hold all that was logged, so they take longer and longer to write. The next save comes after 100
        times as long as this one took, at every logging step if that is quick.
        """
        began = time.monotonic()
        if began >= self.next_save:
            self.save(args, state)
            self.next_save = began + 100 * (time.monotonic() - began)

    def save(self, args, state):
        """Write what the report reads, with the seconds so far, those before a resume included."""
        seconds = time.monotonic() - self.started
        counted = (self.held_out, seconds, self.own_metrics(), self.an_epoch)
        run_folder.save(Path(args.output_dir), state, args, *counted)

    def on_step_begin(self, args, state, control, **kwargs):
        """Show the first completion of the newest table. TRL writes the table after it has logged."""
        if not self.show_every or state.global_step < self.shown + self.show_every:
            return
        table = Path(args.output_dir, "completions", f"completions_{state.global_step:05d}.parquet")
        if state.is_world_process_zero and table.is_file():
            self.shown = state.global_step
            row = pq.read_table(table).slice(0, 1).to_pylist()[0]
            self.training_bar.write(completion_lines(row))


def evaluation_line(state, logs, own_metrics):
    """Return the line of an evaluation, without the share of groups without signal: its groups have one completion."""
    metrics = {name.removeprefix("eval_"): value for name, value in logs.items() if "zero_std" not in name}
    return "  ".join([*line_start(state, metrics), "held out", *own_values(metrics, own_metrics)])


def line_start(state, metrics):
    """Return the step and those COLUMNS that were logged (list[str])."""
    parts = [f"step {state.global_step:>5}/{state.max_steps}"]
    for metric, (name, form) in COLUMNS.items():
        value = metrics.get(metric)
        if value is not None:
            parts.append(f"{name} {form.format(value)}")
    return parts


def own_values(metrics, names):
    """Return "name value" (list[str]) of those metrics of a user's rewards that were logged."""
    parts = []
    for name in names:
        if isinstance(metrics.get(name), int | float):
            parts.append(f"{name} {metrics[name]:.4g}")
    return parts


def clock(seconds):
    """Return seconds as hours and minutes, or minutes and seconds: 5h37m, 4m05s."""
    minutes, seconds = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    return f"{minutes}m{seconds:02d}s"


def completion_lines(row):
    """Return a row of the table of completions as TinyZero prints one: problem, answer, verdict, text."""
    lines = ["-" * 80]
    for name, value in row.items():
        if name not in NOT_SHOWN and value is not None:
            lines.append(f"{name}: {visible(str(value), LONGEST_SHOWN)}")
    text = visible(completion_text(row["completion"]), LONGEST_SHOWN)
    return "\n".join([*lines, "completion:", text, "-" * 80])


class Warnings:
    """Says what goes wrong once, with the reading and what to try, from the metrics of the first and the last steps.

    format_reward: the reward for a right format alone, or None. The mean of a metric that is not logged is NaN. No
    comparison with it is true, so it brings no warning.
    """

    def __init__(self, format_reward):
        self.format_reward = format_reward
        self.first = None  # (step, metrics) of the first logging step
        self.history = []  # (step, metrics) of the last 2 * WINDOW steps
        self.said = set()

    def see(self, step, logs):
        """Return the new warnings (list[str]) after a logging step. logs: its metrics."""
        self.first = self.first or (step, logs)
        self.history = [*((at, seen) for at, seen in self.history if at > step - 2 * WINDOW), (step, logs)]
        if step < self.first[0] + WINDOW:
            return []
        new = []
        for warning in WARNINGS:
            text = warning(self)
            if text and warning not in self.said:
                self.said.add(warning)
                new.append(text)
        return new

    def at_first(self, metric):
        """Return the metric at the first logging step, 0 if it has none."""
        return self.first[1].get(metric) or 0

    def now(self, metric):
        """Return the mean over the last WINDOW optimizer steps."""
        step, _ = self.history[-1]
        return self.mean(metric, step - WINDOW, step)

    def before(self, metric):
        """Return the mean over the WINDOW optimizer steps before those."""
        step, _ = self.history[-1]
        return self.mean(metric, step - 2 * WINDOW, step - WINDOW)

    def mean(self, metric, begin, end):
        """Return the mean over the steps after `begin` up to `end`."""
        found = [seen[metric] for at, seen in self.history if begin < at <= end and seen.get(metric) is not None]
        return sum(found) / len(found) if found else math.nan


def no_signal(readings):
    """Warn if no group has had a signal."""
    if readings.now("frac_reward_zero_std") == 1:
        return (
            f"no group had two different rewards for {WINDOW} steps, so nothing is learned: try easier problems, more "
            "num_generations or a higher temperature"
        )


def format_alone(readings):
    """Warn if the reward is stuck at that of the format alone."""
    reward = readings.now("reward")
    if readings.format_reward is None:
        return
    if abs(reward - readings.format_reward) < 0.005 and readings.now("accuracy") < 0.005:
        return (
            f"the reward stands at {reward:.3f}, what the format alone gets: try a larger model, easier problems or "
            "more num_generations"
        )


def entropy_gone(readings):
    """Warn if entropy has fallen below a tenth of its first value."""
    first, entropy = readings.at_first("entropy"), readings.now("entropy")
    if entropy < 0.1 * first:
        return (
            f"entropy fell from {first:.2f} to {entropy:.3f} nats, so little is explored: try a smaller learning_rate "
            "or a larger beta, from an earlier checkpoint"
        )


def cut_off(readings):
    """Warn if most completions reach the longest length."""
    share = readings.now("completions/clipped_ratio")
    if share > 0.5:
        return (
            f"{share:.0%} of the completions are cut off: raise --max_completion_length, look whether they repeat "
            "themselves, or leave them out of the loss with --mask_truncated_completions true"
        )


def hacked(readings):
    """Warn if the reward rises while accuracy falls."""
    accuracy_before, accuracy = readings.before("accuracy"), readings.now("accuracy")
    reward = readings.now("reward")
    if accuracy < accuracy_before - 0.02 and reward > readings.before("reward") + 0.02:
        return (
            f"accuracy fell from {accuracy_before:.1%} to {accuracy:.1%} while the reward rose to {reward:.3f}: read "
            "the completions, something else than right answers is rewarded"
        )


def operators_gone(readings):
    """Warn if answers with * or / die out."""
    first, share = readings.at_first("times_divide_rate"), readings.now("times_divide_rate")
    if share < 0.25 * first:
        return (
            f"answers with * or / fell from {first:.0%} to {share:.0%}, and sums alone solve half of Countdown: try a "
            "smaller learning_rate or a larger beta, from an earlier checkpoint"
        )


def sampled_by_another(readings):
    """Warn if vLLM samples from another model than is trained."""
    ratio = readings.now("sampling/importance_sampling_ratio/mean")
    if ratio < 0.9 or ratio > 1.1:
        return (
            f"the mean importance ratio is {ratio:.2f} and not about 1, so vLLM samples from another model than is "
            "trained: try lora_dropout 0, dtype float32, or for long completions vllm_importance_sampling_mode "
            "token_truncate with vllm_importance_sampling_clip_max 2"
        )


# Each takes a Warnings and returns a warning (str) or None
WARNINGS = (no_signal, format_alone, entropy_gone, cut_off, hacked, operators_gone, sampled_by_another)
