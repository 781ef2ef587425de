r"""Score completions with verifiable rewards: pure functions of the completions and of their rows' columns.

A task has a judge. It returns a verdict for each completion: the stated answer, and whether it is right. The task's
reward function has TRL's signature, and scores by its attribute `task`, the worth of each verdict and what to log.
Training, evaluation and the page all read `task`. Nothing here runs what a model wrote: r1zero/grading works out
numbers, compares LaTeX, and runs programs in a sandbox. A reward function's name is the name of its metric in every
tracker (`rewards/<name>/mean`).
"""

import re

from r1zero.grading import latex
from r1zero.grading.arithmetic import solves_countdown
from r1zero.grading.extract import completion_text, extract_answer, last_box, python_block
from r1zero.grading.program_tests import parse_tests
from r1zero.grading.sandbox import shared_sandbox
from r1zero.grading.verdict import CORRECT, NO_ANSWER, UNDECIDED, WRONG, Table, Task, Verdict, judge_batch
from r1zero.tasks.countdown import solve

DISPLAY = re.compile(r"\\\[(.*)\\\]", re.DOTALL)
PROSE = re.compile(r"####|\n|\banswer\b", re.IGNORECASE)
GRADED = {NO_ANSWER: 0.0, WRONG: 0.1, UNDECIDED: 0.1, CORRECT: 1.0}  # TinyZero's: 0.1 for the format alone


def countdown_reward(completions, nums, target, log_extra=None, log_metric=None, **kwargs):
    """Return TinyZero's Countdown score: 0 without an answer, 0.1 for a wrong one, 1.0 for a right one.

    completions: B texts (or chat messages) that follow the prompt; nums: B lists of ints; target: B ints, None in rows
    of another task. Returns B floats, None for those rows. Logs `times_divide_rate`, the share of answers with * or /,
    and the columns numbers, target, equation, verdict for the table of completions.

    >>> countdown_reward(["20+5 = 25 </think> <answer>20 + 5 * 2</answer>"] * 2, [[2, 5, 20]] * 2, [30, 44])
    [1.0, 0.1]

    Source: compute_score in TinyZero's verl/utils/reward_score/countdown.py. It evaluates the answer as Python and
    allows an error of 1e-5. Stricter here: exact arithmetic, so a near miss is wrong, and only + - * / ( ) and plain
    decimal integers, so `**`, `//`, `2.5*10` from [2, 5, 10], `07` and `equation = target` are wrong. More lenient
    here: the last complete answer counts wherever it stands, not only on the last line, and it may span lines.
    """
    return countdown_reward.task.score(completions, (nums, target), log_extra, log_metric)


def judge_countdown(completions, nums, target):
    """Judge whether the answer reaches `target` (B ints) with `nums` (B lists of ints), each used once."""

    def check(answers, problems):
        return [solves_countdown(answer, *problem) for answer, problem in zip(answers, problems, strict=True)]

    problems = [None if row[1] is None else row for row in zip(nums, target, strict=True)]
    return judge_batch(completions, problems, extract_answer, check)


def multiplies(verdict):
    """Return whether an answer has * or /, as a metric: sums alone solve half of Countdown."""
    if verdict.answer is None:
        return {}
    return {"times_divide_rate": float("*" in verdict.answer or "/" in verdict.answer)}


countdown_reward.task = Task(
    name="countdown",
    judge=judge_countdown,
    columns=("nums", "target"),
    worth=GRADED,
    table=Table(answer="equation", verdict="verdict", problem=("numbers", "target")),
    right=lambda nums, target: f"<answer>{solve(nums, target)}</answer>" if len(nums) <= 4 else None,
    problem=lambda verdicts, nums, target: ([row_nums and str(row_nums) for row_nums in nums], list(target)),
    metrics=multiplies,
)


def multiplication_reward(completions, product, log_extra=None, log_metric=None, **kwargs):
    """Return TinyZero's score for its second task: 0 without an answer, 0.1 for a wrong one, 1.0 for the product.

    completions: B texts (or chat messages); product: B products, decimal strs or ints, None in rows of another task.
    Returns B floats, None for those rows. The answer is a plain decimal integer: `3_91`, `391.0`, `17*23` and
    `= 391` are wrong. It may span lines, and the last complete one counts.

    >>> multiplication_reward(["<answer>\\n391\\n</answer>", "<answer>3_91</answer>", "391"], ["391"] * 3)
    [1.0, 0.1, 0.0]

    Source: compute_score in TinyZero's verl/utils/reward_score/multiply.py. It reads the last line alone.
    """
    return multiplication_reward.task.score(completions, (product,), log_extra, log_metric)


def judge_product(completions, product):
    """Judge whether the answer is `product` (B decimal strs or ints)."""

    def check(answers, products):
        return [answer == str(value) for answer, value in zip(answers, products, strict=True)]

    return judge_batch(completions, product, extract_answer, check)


multiplication_reward.task = Task(
    name="multiplication",
    judge=judge_product,
    columns=("product",),
    worth=GRADED,
    table=Table(answer="stated_product", verdict="product_verdict", problem=("product",)),
    right=lambda product: f"<answer>{product}</answer>",
    problem=lambda verdicts, product: ([None if value is None else str(value) for value in product],),
)


def boxed_math_reward(completions, solution=None, ground_truth=None, log_extra=None, log_metric=None, **kwargs):
    r"""Return 0 without a \boxed{...} that has content, 0.1 with one, and 1.0 more for a right answer.

    completions: B texts (or chat messages); solution, or ground_truth: B golds in LaTeX, as an answer alone or as a
    text that ends in its box, None in rows of another task. Returns B floats, None for those rows. Raises ValueError
    without either column. The last box counts. r1zero/grading/latex.py compares answers. An unreduced answer (`45/9`
    for 5, `7! \times 2!`) is wrong on purpose, as in OpenAI's and PRIME's graders. An answer that could not be decided
    in time is wrong too, and `undecided` is the share of these.

    >>> boxed_math_reward([r"\boxed{0.5}", r"\boxed{2}", "1/2"], [r"so it is \boxed{\frac{1}{2}}"] * 3)
    [1.1, 0.1, 0.0]

    Source: the x_r1_750 recipe on veRL, for the values. Its pattern takes the first box, up to its first closing
    brace. TRL's accuracy_reward, for math-verify. It leaves the wrapping of a bare gold to the data.
    """
    solution = ground_truth if solution is None else solution
    if solution is None:
        raise ValueError(f"boxed_math_reward found the columns {sorted(kwargs)}, wanted solution or ground_truth")
    return boxed_math_reward.task.score(completions, (solution,), log_extra, log_metric)


def judge_boxed_math(completions, solution):
    """Judge whether the last box holds the answer of `solution` (B strs in LaTeX, alone or with a box)."""
    return judge_batch(
        completions, gold_answers(solution), last_box, lambda answers, golds: latex.equal(golds, answers)
    )


def gold_answers(solution):
    """Return the golds of B solutions: the content of a text's last box, or the text. None stays None."""
    return [None if text is None else gold_answer(str(text)) for text in solution]


def gold_answer(text):
    r"""Return the gold of a solution (str): the content of its last box, or all of it without a display's \[ \].

    >>> gold_answer(r"so it is \boxed{\frac{1}{2}}."), gold_answer(r"\[18\]"), gold_answer("x+1")
    ('\\frac{1}{2}', '18', 'x+1')
    """
    return last_box(text) or DISPLAY.sub(r"\1", text.strip())


def stated_gold(text):
    """Return the gold of a solution. Raises ValueError for prose such as GSM8K's raw golds: no answer equals it."""
    gold = gold_answer(str(text))
    if PROSE.search(gold):
        raise ValueError("a sentence, and the answer alone, or in a \\boxed{}, is wanted")
    return gold


boxed_math_reward.task = Task(
    name="boxed_math",
    judge=judge_boxed_math,
    columns=("solution",),
    worth=GRADED | {CORRECT: GRADED[WRONG] + GRADED[CORRECT]},
    table=Table(answer="boxed", verdict="boxed_verdict", problem=("gold",)),
    right=lambda solution: rf"\boxed{{{stated_gold(solution)}}}",
    problem=lambda verdicts, solution: (gold_answers(solution),),
    metrics=lambda verdict: {"undecided": float(verdict.status == UNDECIDED)},
)


def code_reward(completions, tests, log_extra=None, log_metric=None, **kwargs):
    r"""Return the share of tests that the Python program of a completion passes: 0 without a program, 1.0 for all.

    completions: B texts (or chat messages); tests: B JSON strs {"inputs": [...], "outputs": [...], "fn_name"
    optional}, None in rows of another task. Returns B floats, None for those rows. Raises ValueError for tests that
    cannot be read, RuntimeError if there is no sandbox. The last complete ```python block counts. It has 10 s for all
    of its tests, and a batch of 64 has 256 s together, divided by the number of cores. Each program has 2 s, whatever
    the others do, and those that need longer divide the rest equally. So an endless program takes nothing from a right
    one that ends within 2 s.

    >>> tests = '{"inputs": ["1\\n", "2\\n"], "outputs": ["2\\n", "3\\n"]}'
    >>> code_reward(["```python\nprint(2)\n```", "print(2)"], [tests, tests])  # doctest: +SKIP
    [0.5, 0.0]

    Source: the code rows of PRIME-RL/Eurus-2-RL-Data, and their scoring in verl's prime_code.
    """
    return code_reward.task.score(completions, (tests,), log_extra, log_metric)


def judge_code(completions, tests):
    """Judge whether the program passes all of its `tests` (B JSON strs). A verdict has the share that it passes."""
    own = [row for row, row_tests in enumerate(tests) if row_tests is not None]
    verdicts = [None] * len(completions)
    if not own:
        return verdicts
    programs = [python_block(completion_text(completions[row])) for row in own]
    shares = shared_sandbox().share_passed(programs, [parse_tests(tests[row]) for row in own])
    for row, program, share in zip(own, programs, shares, strict=True):
        if program is None:
            verdicts[row] = Verdict(None, NO_ANSWER, share)
        else:
            verdicts[row] = Verdict(program, CORRECT if share == 1 else WRONG, share)
    return verdicts


code_reward.task = Task(
    name="code",
    judge=judge_code,
    columns=("tests",),
    worth={NO_ANSWER: 0.0, CORRECT: 1.0},
    table=Table(answer="program", verdict="code_verdict", problem=("tests_passed",)),
    problem=lambda verdicts, tests: ([verdict and verdict.passed for verdict in verdicts],),
)
