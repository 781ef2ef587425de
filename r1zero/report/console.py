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
        format_rewards = [scorer.format_reward for scorer in scorers if scorer.format_reward is not None]
        self.warnings = Warnings(min(format_rewards, default=math.nan))
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
            # Without the share of groups without signal, as they have one completion
            metrics = {name.removeprefix("eval_"): value for name, value in logs.items() if "zero_std" not in name}
            self.training_bar.write(line_of(state, metrics, ["held out"], self.own_metrics()))
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
            f"{seconds_a_step:6.2f} s/step",
            f"{tokens_a_step / seconds_a_step:7,.0f} tok/s",
            f"left {clock(seconds_left)}",
        ]
        if self.price_per_hour:
            spent = (now - self.started) / 3600 * self.price_per_hour
            parts.append(f"cost {spent:,.2f} of {spent + seconds_left / 3600 * self.price_per_hour:,.2f}")
        return line_of(state, logs, parts, self.own_metrics())

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


def line_of(state, metrics, parts, own_metrics):
    """Return a line: the step, those COLUMNS that were logged, `parts` (list[str]) and a user's own metrics."""
    shown = [f"step {state.global_step:>5}/{state.max_steps}"]
    for metric, (name, form) in COLUMNS.items():
        if metrics.get(metric) is not None:
            shown.append(f"{name} {form.format(metrics[metric])}")
    shown += parts
    for name in own_metrics:
        if metrics.get(name) is not None:
            shown.append(f"{name} {metrics[name]:.4g}")
    return "  ".join(shown)


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

    format_reward: the reward for a right format alone, NaN if there is none. No comparison with NaN is true, so it
    brings no warning, nor does a metric that is not logged.
    """

    def __init__(self, format_reward):
        self.format_reward = format_reward
        self.first = None  # (step, metrics) of the first logging step
        self.history = []  # (step, metrics) of the last 2 * WINDOW steps
        self.said = set()  # faults

    def see(self, step, logs):
        """Return the new warnings (list[str]) after a logging step. logs: its metrics."""
        self.first = self.first or (step, logs)
        self.history = [*((at, seen) for at, seen in self.history if at > step - 2 * WINDOW), (step, logs)]
        if step < self.first[0] + WINDOW:
            return []
        new = {fault: text for fault, text in warnings_of(self).items() if fault not in self.said}
        self.said.update(new)
        return list(new.values())

    def at_first(self, metric):
        """Return the metric at the first logging step, 0 if it has none."""
        return self.first[1].get(metric) or 0

    def now(self, metric):
        """Return the mean over the last WINDOW optimizer steps."""
        return self.mean(metric, self.history[-1][0])

    def before(self, metric):
        """Return the mean over the WINDOW optimizer steps before those."""
        return self.mean(metric, self.history[-1][0] - WINDOW)

    def mean(self, metric, end):
        """Return the mean over the WINDOW steps up to `end`, NaN if none of them has the metric."""
        logged = [seen.get(metric) for at, seen in self.history if end - WINDOW < at <= end]
        values = [value for value in logged if value is not None]
        return sum(values) / len(values) if values else math.nan


def warnings_of(readings):
    """Return {fault: warning} for what goes wrong now. readings: a Warnings."""
    found = {}
    if readings.now("frac_reward_zero_std") == 1:
        found["no signal"] = (
            f"no group had two different rewards for {WINDOW} steps, so nothing is learned: try easier problems, more "
            "num_generations or a higher temperature"
        )

    reward, accuracy, accuracy_before = readings.now("reward"), readings.now("accuracy"), readings.before("accuracy")
    if abs(reward - readings.format_reward) < 0.005 and accuracy < 0.005:
        found["format alone"] = (
            f"the reward stands at {reward:.3f}, what the format alone gets: try a larger model, easier problems or "
            "more num_generations"
        )
    if accuracy < accuracy_before - 0.02 and reward > readings.before("reward") + 0.02:
        found["hacking"] = (
            f"accuracy fell from {accuracy_before:.1%} to {accuracy:.1%} while the reward rose to {reward:.3f}: read "
            "the completions, something else than right answers is rewarded"
        )

    first, entropy = readings.at_first("entropy"), readings.now("entropy")
    if entropy < 0.1 * first:
        found["entropy"] = (
            f"entropy fell from {first:.2f} to {entropy:.3f} nats, so little is explored: try a smaller learning_rate "
            "or a larger beta, from an earlier checkpoint"
        )

    cut_off = readings.now("completions/clipped_ratio")
    if cut_off > 0.5:
        found["cut off"] = (
            f"{cut_off:.0%} of the completions are cut off: raise --max_completion_length, look whether they repeat "
            "themselves, or leave them out of the loss with --mask_truncated_completions true"
        )

    first, share = readings.at_first("times_divide_rate"), readings.now("times_divide_rate")
    if share < 0.25 * first:
        found["operators"] = (
            f"answers with * or / fell from {first:.0%} to {share:.0%}, and sums alone solve half of Countdown: try a "
            "smaller learning_rate or a larger beta, from an earlier checkpoint"
        )

    ratio = readings.now("sampling/importance_sampling_ratio/mean")
    if ratio < 0.9 or ratio > 1.1:
        found["another model"] = (
            f"the mean importance ratio is {ratio:.2f} and not about 1, so vLLM samples from another model than is "
            "trained: try lora_dropout 0, dtype float32, or for long completions vllm_importance_sampling_mode "
            "token_truncate with vllm_importance_sampling_clip_max 2"
        )
    return found
