"""Verifiable rewards: what is right, and what it is worth. Pure functions of completions and their rows' columns.

A task has a judge, which gives a verdict for each completion: the answer that it states, and whether that is right.
Its reward function, which has TRL's signature, turns verdicts into numbers and logs them. `TASKS`, at the end, says
all of this once for each task; training, evaluation and the page read it there. Nothing here runs what a model wrote:
r1zero/grading works out numbers, compares LaTeX, and runs programs shut in a sandbox. A reward function's name is its
metric's name in every tracker (`rewards/<name>/mean`).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from r1zero.grading import latex as latex_answers
from r1zero.grading.arithmetic import solves_countdown
from r1zero.grading.extract import completion_text, extract_answer, last_box, python_block
from r1zero.grading.program_tests import parse_tests
from r1zero.grading.sandbox import Sandbox

FORMAT_REWARD = 0.1  # for an answer that is wrong
CORRECT_REWARD = 1.0

NO_ANSWER, WRONG, CORRECT, UNDECIDED = STATUSES = ("no answer", "wrong", "correct", "undecided")


class Verdict(NamedTuple):
    """What a judge finds in one completion. passed: the share of its tests that a program passes, in code alone."""

    answer: str | None
    status: str  # one of STATUSES
    passed: float | None = None


@dataclass(frozen=True)
class Task:
    """All that there is to know of a task."""

    name: str  # of its metric accuracy/<name>
    judge: Callable  # judge(completions, *columns) -> list of Verdict, None in rows of another task
    columns: tuple[str, ...]  # of the data, which the judge reads
    rewards: dict[str, float]  # of each status; a status that is not there is worth the share of tests passed
    answer_column: str  # of the table of completions, like the next two
    verdict_column: str
    problem_columns: tuple[str, ...] = ()


def judge_batch(completions, golds, extract, check):
    """The verdicts of B completions (list of Verdict, None where the gold is None, that is, in rows of another task).

    golds: B of what a right answer is judged by. extract(text) gives the answer in a completion, or None.
    check(answers, golds) says of each pair whether the answer is right, with None for what it could not decide.
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


def scored(verdicts, rewards):
    """The rewards of B verdicts: floats, None in rows of another task. rewards: as in a Task."""
    return [None if verdict is None else rewards.get(verdict.status, verdict.passed) for verdict in verdicts]


def log_rates(log_metric, task_name, statuses):
    """Logs `accuracy` and `format_rate` as plain fractions, and `accuracy/<task>` where tasks share a batch.

    statuses: B strs, None in rows of another task. One value a row is logged, because TRL averages what is logged: so
    the mean over tasks and processes is the mean over rows.
    """
    own = [status for status in statuses if status is not None]
    for status in own:
        log_metric("accuracy", float(status == CORRECT))
        log_metric("format_rate", float(status != NO_ANSWER))
        if len(own) < len(statuses):
            log_metric(f"accuracy/{task_name}", float(status == CORRECT))


def log_verdicts(task, verdicts, problem, log_extra, log_metric):
    """Logs the rates of B verdicts, and the task's columns of the table of completions.

    problem: dict of a column's name to B values, shown before the answer. Either logger may be None.
    """
    if log_metric is not None:
        log_rates(log_metric, task.name, [verdict and verdict.status for verdict in verdicts])
    if log_extra is not None:
        for column, values in problem.items():
            log_extra(column, values)
        log_extra(task.answer_column, [verdict and verdict.answer for verdict in verdicts])
        log_extra(task.verdict_column, [verdict.status if verdict else "" for verdict in verdicts])


def judge_countdown(completions, nums, target):
    """Verdicts on whether the answer reaches `target` (B ints) with `nums` (B lists of ints), each used once."""

    def check(answers, problems):
        return [solves_countdown(answer, *problem) for answer, problem in zip(answers, problems, strict=True)]

    problems = [None if row[1] is None else row for row in zip(nums, target, strict=True)]
    return judge_batch(completions, problems, extract_answer, check)


def countdown_reward(completions, nums, target, log_extra=None, log_metric=None, **kwargs):
    """TinyZero's Countdown score: 0 without an answer, 0.1 for a wrong one, 1.0 for a right one.

    completions: B texts (or chat messages) that follow the prompt; nums: B lists of ints; target: B ints, None in rows
    of another task. Returns B floats, None for those rows. Logs `times_divide_rate`, the share of answers with * or /,
    and the columns target, numbers, equation, verdict for the table of completions.

    >>> countdown_reward(["20+5 = 25 </think> <answer>20 + 5 * 2</answer>"] * 2, [[2, 5, 20]] * 2, [30, 44])
    [1.0, 0.1]

    Source: compute_score in TinyZero's verl/utils/reward_score/countdown.py, which evaluates the answer as Python and
    allows an error of 1e-5. Stricter here: exact arithmetic, so a near miss is wrong, and only + - * / ( ) and plain
    decimal integers, so `**`, `//`, `2.5*10` from [2, 5, 10], `07` and `equation = target` are wrong. More lenient
    here: the last complete answer counts wherever it stands, not only on the last line, and it may span lines.
    """
    task = TASKS["countdown_reward"]
    verdicts = judge_countdown(completions, nums, target)
    problem = {"target": list(target), "numbers": [row_nums and str(row_nums) for row_nums in nums]}
    log_verdicts(task, verdicts, problem, log_extra, log_metric)
    for verdict in verdicts if log_metric is not None else ():
        if verdict is not None and verdict.answer is not None:
            log_metric("times_divide_rate", float("*" in verdict.answer or "/" in verdict.answer))
    return scored(verdicts, task.rewards)


def judge_product(completions, product):
    """Verdicts on whether the answer is `product` (B decimal strs or ints)."""

    def check(answers, products):
        return [answer == str(value) for answer, value in zip(answers, products, strict=True)]

    return judge_batch(completions, product, extract_answer, check)


def multiplication_reward(completions, product, log_extra=None, log_metric=None, **kwargs):
    """TinyZero's score for its second task: 0 without an answer, 0.1 for a wrong one, 1.0 for the product.

    completions: B texts (or chat messages); product: B products, decimal strs or ints, None in rows of another task.
    Returns B floats, None for those rows. The answer is a plain decimal integer: `3_91`, `391.0`, `17*23` and
    `= 391` are wrong. It may span lines, and the last complete one counts.

    >>> multiplication_reward(["<answer>\\n391\\n</answer>", "<answer>3_91</answer>", "391"], ["391"] * 3)
    [1.0, 0.1, 0.0]

    Source: compute_score in TinyZero's verl/utils/reward_score/multiply.py, which reads the last line alone.
    """
    task = TASKS["multiplication_reward"]
    verdicts = judge_product(completions, product)
    problem = {"product": [None if value is None else str(value) for value in product]}
    log_verdicts(task, verdicts, problem, log_extra, log_metric)
    return scored(verdicts, task.rewards)


def gold_answers(solution):
    """The golds of B solutions: an answer alone, or what the last box of a text holds; None stays None."""
    return [None if text is None else last_box(str(text)) or str(text) for text in solution]


def judge_boxed_math(completions, solution):
    """Verdicts on whether the last box holds the answer of `solution` (B strs in LaTeX, alone or with a box)."""

    def check(answers, golds):
        return latex_answers.equal(golds, answers)

    return judge_batch(completions, gold_answers(solution), last_box, check)


def boxed_math_reward(
    completions,
    solution=None,
    ground_truth=None,
    format_reward=FORMAT_REWARD,
    correct_reward=CORRECT_REWARD,
    log_extra=None,
    log_metric=None,
    **kwargs,
):
    r"""0 without a \boxed{...} that has content, `format_reward` with one, `correct_reward` more for a right answer.

    completions: B texts (or chat messages); solution, or ground_truth: B golds in LaTeX, as an answer alone or as a
    text that ends in its box, None in rows of another task. Returns B floats, None for those rows; ValueError without
    either column. The last box counts. How answers are compared stands in r1zero/grading/latex.py. An unreduced answer
    (`45/9` for 5, `7! \times 2!`) is wrong on purpose, as OpenAI's and PRIME's graders have it; what could not be
    decided in its time is wrong too, and `undecided` is its share.

    >>> boxed_math_reward([r"\boxed{0.5}", r"\boxed{2}", "1/2"], [r"so it is \boxed{\frac{1}{2}}"] * 3)
    [1.1, 0.1, 0.0]

    Source: the x_r1_750 recipe on veRL, for the values; its pattern takes the first box, up to its first closing
    brace. TRL's accuracy_reward, for math-verify; it leaves the wrapping of a bare gold to the data.
    """
    solution = ground_truth if solution is None else solution
    if solution is None:
        raise ValueError(f"boxed_math_reward found the columns {sorted(kwargs)}, wanted solution or ground_truth")
    verdicts = judge_boxed_math(completions, solution)
    log_verdicts(TASKS["boxed_math_reward"], verdicts, {"gold": gold_answers(solution)}, log_extra, log_metric)
    for verdict in verdicts if log_metric is not None else ():
        if verdict is not None:
            log_metric("undecided", float(verdict.status == UNDECIDED))
    return scored(verdicts, graded(format_reward, format_reward + correct_reward))


@functools.cache
def shared_sandbox():
    """The sandbox of a code_reward that was given none, as in TRL's own script."""
    return Sandbox()


def judge_code(completions, tests, sandbox=None):
    """Verdicts on whether the program passes all of its `tests` (B JSON strs), with the share that it passes."""
    own = [row for row, row_tests in enumerate(tests) if row_tests is not None]
    verdicts = [None] * len(completions)
    if not own:
        return verdicts
    programs = [python_block(completion_text(completions[row])) for row in own]
    shares = (sandbox or shared_sandbox()).share_passed(programs, [parse_tests(tests[row]) for row in own])
    for row, program, share in zip(own, programs, shares, strict=True):
        if program is None:
            verdicts[row] = Verdict(None, NO_ANSWER, share)
        else:
            verdicts[row] = Verdict(program, CORRECT if share == 1 else WRONG, share)
    return verdicts


def code_reward(completions, tests, sandbox=None, log_extra=None, log_metric=None, **kwargs):
    r"""The share of its tests that the Python program of a completion passes: 0 without a program, 1.0 for all.

    completions: B texts (or chat messages); tests: B JSON strs {"inputs": [...], "outputs": [...], "fn_name"
    optional}, None in rows of another task; sandbox: the Sandbox to run in, by default one in bubblewrap. Returns B
    floats, None for those rows; ValueError for tests that cannot be read, RuntimeError where there is no sandbox. The
    last complete ```python block counts. It has 10 s for all of its tests, and a batch of 64 has 256 s together,
    divided by the number of cores: 2 s for each program, whatever the others do, and for those that need longer an
    even share of what is left. So an endless program takes nothing from a right one that ends within 2 s.

    >>> tests = '{"inputs": ["1\\n", "2\\n"], "outputs": ["2\\n", "3\\n"]}'
    >>> code_reward(["```python\nprint(2)\n```", "print(2)"], [tests, tests])  # doctest: +SKIP
    [0.5, 0.0]

    Source: the code rows of PRIME-RL/Eurus-2-RL-Data, and their scoring in verl's prime_code.
    """
    task = TASKS["code_reward"]
    verdicts = judge_code(completions, tests, sandbox)
    problem = {"tests_passed": [verdict and verdict.passed for verdict in verdicts]}
    log_verdicts(task, verdicts, problem, log_extra, log_metric)
    return scored(verdicts, task.rewards)


def graded(wrong, correct):
    """The rewards of each status where an answer is either right or not."""
    return {NO_ANSWER: 0.0, WRONG: wrong, UNDECIDED: wrong, CORRECT: correct}


TASKS = {
    "countdown_reward": Task(
        name="countdown",
        judge=judge_countdown,
        columns=("nums", "target"),
        rewards=graded(FORMAT_REWARD, CORRECT_REWARD),
        answer_column="equation",
        verdict_column="verdict",
        problem_columns=("numbers", "target"),
    ),
    "multiplication_reward": Task(
        name="multiplication",
        judge=judge_product,
        columns=("product",),
        rewards=graded(FORMAT_REWARD, CORRECT_REWARD),
        answer_column="stated_product",
        verdict_column="product_verdict",
        problem_columns=("product",),
    ),
    "boxed_math_reward": Task(
        name="boxed_math",
        judge=judge_boxed_math,
        columns=("solution",),
        rewards=graded(FORMAT_REWARD, FORMAT_REWARD + CORRECT_REWARD),
        answer_column="boxed",
        verdict_column="boxed_verdict",
        problem_columns=("gold",),
    ),
    "code_reward": Task(
        name="code",
        judge=judge_code,
        columns=("tests",),
        rewards={NO_ANSWER: 0.0, CORRECT: 1.0},
        answer_column="program",
        verdict_column="code_verdict",
    ),
}
