"""What a judge finds in a completion, and what a task makes of it: a reward, metrics, columns of a table."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from r1zero.grading.extract import completion_text

NO_ANSWER, WRONG, CORRECT, UNDECIDED = STATUSES = ("no answer", "wrong", "correct", "undecided")


class Verdict(NamedTuple):
    """What a judge finds in one completion. passed: the share of its tests that a program passes, in code alone."""

    answer: str | None
    status: str  # one of STATUSES
    passed: float | None = None


class Table(NamedTuple):
    """The columns that a task has in the table of completions. The problem's are shown before the answer."""

    answer: str
    verdict: str
    problem: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """All that there is to know of a task. A reward function has its own as the attribute `task`."""

    name: str  # of the metric accuracy/<name>
    judge: Callable  # judge(completions, *columns) -> list of Verdict, None in rows of another task
    columns: tuple[str, ...]  # of the data, as the judge reads them; the last is null in rows of another task
    worth: dict[str, float]  # of each status; a status that is not there is worth the share of tests passed
    table: Table
    problem: Callable  # problem(verdicts, *columns) -> the problem's columns of the table, B values each
    # right(*columns of one row) -> a right completion, None if it takes too long; ValueError if the row has none
    right: Callable = lambda *columns: None
    metrics: Callable = lambda verdict: {}  # metrics(verdict) -> dict of more metrics of one completion

    @property
    def most(self):
        """What a right answer is worth."""
        return max(self.worth.values())

    def rewards(self, verdicts):
        """Return what B verdicts are worth: B floats, None in rows of another task."""
        return [None if verdict is None else self.worth.get(verdict.status, verdict.passed) for verdict in verdicts]

    def log(self, verdicts, columns, log_extra=None, log_metric=None):
        """Log the metrics and the table's columns of B verdicts with TRL's loggers, each of which may be None.

        columns: the data's, in the order of `columns`.
        """
        if log_metric is not None:
            log_rates(log_metric, self.name, verdicts)
            for verdict in verdicts:
                for name, value in self.metrics(verdict).items() if verdict else ():
                    log_metric(name, value)
        if log_extra is not None:
            for name, values in zip(self.table.problem, self.problem(verdicts, *columns), strict=True):
                log_extra(name, values)
            log_extra(self.table.answer, [verdict and verdict.answer for verdict in verdicts])
            log_extra(self.table.verdict, [verdict.status if verdict else "" for verdict in verdicts])

    def score(self, completions, columns, log_extra=None, log_metric=None):
        """Judge B completions, log what was found, and return their rewards: the body of a reward function."""
        verdicts = self.judge(completions, *columns)
        self.log(verdicts, columns, log_extra, log_metric)
        return self.rewards(verdicts)


def judge_batch(completions, golds, extract, check):
    """Return the verdicts of B completions, None if the gold is None, that is, in rows of another task.

    golds: B of what a right answer is judged by. extract(text) gives the answer in a completion, or None.
    check(answers, golds) says of each pair whether the answer is right, or None if it could not decide.
    """
    verdicts = [None] * len(completions)
    answered = []
    for row, (completion, gold) in enumerate(zip(completions, golds, strict=True)):
        if gold is None:
            continue
        answer = extract(completion_text(completion))
        if answer is None:
            verdicts[row] = Verdict(None, NO_ANSWER)
        else:
            answered.append((row, answer, gold))
    found = check([answer for _, answer, _ in answered], [gold for _, _, gold in answered])
    statuses = {True: CORRECT, False: WRONG, None: UNDECIDED}
    for (row, answer, _), right in zip(answered, found, strict=True):
        verdicts[row] = Verdict(answer, statuses[right])
    return verdicts


def log_rates(log_metric, task_name, verdicts):
    """Log `accuracy` and `format_rate` as fractions, and `accuracy/<task>` if tasks share the batch of B verdicts.

    One value a row is logged. TRL averages what is logged, so the mean over tasks and processes is that over rows.
    """
    own = [verdict for verdict in verdicts if verdict is not None]
    for verdict in own:
        log_metric("accuracy", float(verdict.status == CORRECT))
        log_metric("format_rate", float(verdict.status != NO_ANSWER))
        if len(own) < len(verdicts):
            log_metric(f"accuracy/{task_name}", float(verdict.status == CORRECT))
