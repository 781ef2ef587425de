"""From the names in `reward_funcs` to functions: those of rewards.py, or a user's own `module:function`.

A user's function has TRL's signature, f(completions, **columns) -> list of floats, and stands in a file beside the
data, in a file of the current folder, or in an installed package. What it logs with TRL's log_extra and log_metric
appears where ours does; of its columns, `verdict`, `answer` and `problem` are those that the page's reader shows.
"""

import functools
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import NamedTuple

import rewards
from r1zero.grading.behaviours import LONG, MISTAKES, count_behaviours, name_mistake
from r1zero.grading.extract import completion_text
from r1zero.grading.sandbox import Sandbox
from r1zero.tasks.countdown import CELL_METRICS, cells
from r1zero.training import nan_guard as finite
from r1zero.training.nan_guard import BadNumber

OWN_COLUMNS = ("verdict", "answer", "problem")  # of a user's function, which are named after it in the table


class TableColumns(NamedTuple):
    """The columns of the table of completions that a reward function writes. Any of them may be missing there."""

    answer: str
    verdict: str
    problem: tuple[str, ...]


def function_name(name):
    """The function's own name, which names its metrics and its column of rewards.

    >>> function_name("countdown_reward"), function_name("mine.rewards:spelling")
    ('countdown_reward', 'spelling')
    """
    return name.rpartition(":")[2]


def table_columns(name):
    """The TableColumns of a name in reward_funcs.

    >>> table_columns("mine:spelling")
    TableColumns(answer='spelling_answer', verdict='spelling_verdict', problem=('spelling_problem',))
    """
    function = function_name(name)
    task = rewards.TASKS.get(function)
    if task is None:
        return TableColumns(f"{function}_answer", f"{function}_verdict", (f"{function}_problem",))
    return TableColumns(task.answer_column, task.verdict_column, task.problem_columns)


def resolve(names, data_dir, allow_unsandboxed_code=False):
    """The functions that `reward_funcs` names (list of str), in order. data_dir: where a user's file may stand.

    Raises ValueError for a name without a function, and RuntimeError where code_reward has no sandbox to run programs
    in; both say what to type.
    """
    functions = []
    for name in names:
        if ":" in name:
            functions.append(own_function(name, data_dir))
        elif name in rewards.TASKS:
            functions.append(getattr(rewards, name))
        else:
            raise ValueError(
                f"reward_funcs names {name}; rewards.py has {', '.join(rewards.TASKS)}, and a function of your own is "
                "named module:function"
            )
    taken = [function.__name__ for function in functions]
    for name in set(taken):
        if taken.count(name) > 1:
            raise ValueError(f"reward_funcs names {taken.count(name)} functions called {name}: rename one of them")
    if "code_reward" in taken:
        place = taken.index("code_reward")
        functions[place] = functools.partial(rewards.code_reward, sandbox=Sandbox(allow_unsandboxed_code))
        functools.update_wrapper(functions[place], rewards.code_reward)
    return functions


def own_function(name, data_dir):
    """A user's function from its name, module:function. Raises ValueError with what was found and what was wanted."""
    module_name, _, attribute = name.rpartition(":")
    module = load_module(module_name, data_dir)
    function = getattr(module, attribute, None)
    if not inspect.isroutine(function):
        defined = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise ValueError(f"reward_funcs names {name}, and {module_name} has no such function; it has {defined}")
    if inspect.iscoroutinefunction(function):
        raise ValueError(f"reward_funcs names {name}, which is async: make it a plain function")
    if function.__name__ in rewards.TASKS:
        raise ValueError(f"reward_funcs names {name}, and rewards.py has a {function.__name__}: give it another name")
    return with_own_columns(function)


def load_module(name, data_dir):
    """A user's module: a file (path.py), or the name of one beside the data, in this folder, or installed."""
    path = find_file(name, data_dir)
    try:
        if path is None:
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(f"reward_file_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        sys.path.append(str(path.parent.resolve()))  # last, so that the file's neighbours hide nothing of ours
        spec.loader.exec_module(module)
        return module
    except Exception as error:  # a user's file may raise anything
        raise ValueError(
            f"reward_funcs names {name}, which cannot be imported ({type(error).__name__}: {error}): give "
            f"module:function with a file of {data_dir} or of this folder, or an installed package"
        ) from error


def find_file(name, data_dir):
    """The Path of a user's file, or None where the name is to be imported as an installed package is."""
    if name.endswith(".py"):
        return Path(name)
    for folder in (Path(data_dir), Path()):
        path = folder / f"{name.replace('.', '/')}.py"
        if path.is_file():
            return path
    return None


def with_own_columns(function):
    """A user's function whose columns verdict, answer and problem are named after it: tasks can share a run."""

    @functools.wraps(function)
    def wrapped(completions, log_extra=None, **columns):
        def log_column(column, values):
            values = list(values)
            if column == "verdict":
                check_verdicts(function.__name__, values, len(completions))
            if log_extra is not None:
                log_extra(f"{function.__name__}_{column}" if column in OWN_COLUMNS else column, values)

        return function(completions=completions, log_extra=log_column, **columns)

    return wrapped


def check_verdicts(name, verdicts, size):
    """Raises ValueError unless these are `size` of the statuses in rewards.py, or None in rows of another task."""
    if len(verdicts) != size:
        raise ValueError(f"{name} logged {len(verdicts)} verdicts for {size} completions: log one for each")
    for verdict in verdicts:
        if verdict not in (*rewards.STATUSES, None):
            raise ValueError(f"{name} logged the verdict {verdict!r}: wanted one of {rewards.STATUSES}, or None")


def call_as_trl(function, prompts, completions, columns, completion_ids=None, log_extra=None, log_metric=None):
    """The rewards of B completions, asked for with everything that TRL's trainer gives to a reward function.

    columns: dict of the data's other columns to B values. Returns B floats or None. Raises ValueError where the
    function returns another number of rewards or anything else, and what the function raises.
    """
    from transformers import TrainerState

    given = function(
        prompts=prompts,
        completions=completions,
        completion_ids=completion_ids or [[] for _ in completions],
        trainer_state=TrainerState(),
        log_extra=log_extra or ignore,
        log_metric=log_metric or ignore,
        **columns,
    )
    return as_rewards(function.__name__, given, len(completions))


def as_rewards(name, given, size):
    """What a reward function has given, as a list of `size` numbers or None. Raises ValueError where it is none."""
    if isinstance(given, (dict, str)) or not hasattr(given, "__iter__"):
        raise ValueError(f"{name} returned {given!r}, wanted a list with a number or None for each completion")
    found = list(given)
    if len(found) != size:
        raise ValueError(f"{name} returned {len(found)} rewards for {size} completions")
    for reward in found:
        if reward is not None and not hasattr(reward, "__float__"):
            raise ValueError(f"{name} returned {reward!r} in its list, wanted numbers or None")
    return found


def ignore(*_):
    """Stands for log_extra and log_metric where nothing is to be logged."""


def watch(functions, stop_on_nan=True):
    """Reward functions (list) that also log what their completions show, and that are all watched together.

    stop_on_nan: whether they raise finite.BadNumber where a reward is NaN or infinite, where a row gets none from any
    of them, and where a function raises: with the row and its completion.
    """
    if not stop_on_nan:
        return [watched(function) for function in functions]
    scored = []  # for each row of the batch at hand, whether a function so far has given it a reward

    def checked(function, is_first, is_last):
        @functools.wraps(function)
        def wrapped(prompts, completions, **columns):
            scores, bad = None, None
            try:
                scores = call_by_row_where_it_fails(function, prompts, completions, columns)
                finite.check_rewards(function.__name__, scores, prompts, completions, columns)
                if is_first:
                    scored[:] = [False] * len(scores)
                scored[:] = [was or score is not None for was, score in zip(scored, scores, strict=True)]
                if is_last:
                    finite.check_scored(scored, prompts, completions, columns)
            except BadNumber as error:
                bad = error
            finite.raise_on_all(bad)
            return scores

        return wrapped

    last = len(functions) - 1
    return [checked(watched(function), place == 0, place == last) for place, function in enumerate(functions)]


def call_by_row_where_it_fails(function, prompts, completions, columns):
    """The rewards (list) of B completions. Where the function raises, BadNumber with the first row it fails on."""
    try:
        given = function(prompts=prompts, completions=completions, **columns)
        return as_rewards(function.__name__, given, len(completions))
    except Exception as error:  # a user's own function may raise anything
        failed = error
    silent = {"log_extra": ignore, "log_metric": ignore}
    for row in range(len(completions)):
        of_row = {}
        for name, values in columns.items():
            is_column = isinstance(values, list) and len(values) == len(completions)
            of_row[name] = [values[row]] if is_column else values
        try:
            function(prompts=[prompts[row]], completions=[completions[row]], **of_row | silent)
        except Exception as error:
            text = finite.row_as_text(row, prompts, completions)
            message = f"{function.__name__} raised {type(error).__name__} ({error}) for {text}"
            raise BadNumber(message, finite.row_of(row, prompts, completions, columns)) from error
    raise failed


def watched(function):
    """A reward function that also logs what its completions show, through TRL's log_metric: for training.

    Over the rows that it scores, one value a row: `behaviours/<name>`, a count of reasoning.py, and the same of right
    and of wrong completions as `behaviours_correct/<name>` and `behaviours_incorrect/<name>`, with whether a
    completion is longer than 200 tokens; for Countdown the accuracy in each of its cells, such as
    `cells/4_numbers_needs_times_divide`, and the share of completions with each mistake, `mistakes/<name>`. For a
    user's function that writes verdicts, `accuracy` and `format_rate`.
    """
    name = function.__name__
    verdict_column = table_columns(name).verdict

    @functools.wraps(function)
    def wrapped(completions, log_extra=None, log_metric=None, **columns):
        statuses, logged = [None] * len(completions), set()

        def see_column(column, values):
            if column == verdict_column:
                statuses[:] = values
            if log_extra is not None:
                log_extra(column, values)

        def see_metric(metric, value):
            logged.add(metric)
            log_metric(metric, value)

        if log_metric is None:
            return function(completions=completions, log_extra=log_extra, **columns)
        scores = function(completions=completions, log_extra=see_column, log_metric=see_metric, **columns)
        if name not in rewards.TASKS and "accuracy" not in logged:
            rewards.log_rates(log_metric, name.removesuffix("_reward"), statuses)
        for row, score in enumerate(scores):
            if score is not None:
                ids = columns["completion_ids"][row] if "completion_ids" in columns else None
                log_behaviours(log_metric, completion_text(completions[row]), ids, statuses[row])
        if name == "countdown_reward":
            log_cells(log_metric, columns["nums"], columns["target"], statuses)
            log_mistakes(log_metric, completions, columns["target"], statuses)
        return scores

    return wrapped


def log_behaviours(log_metric, text, ids, status):
    """Logs what one completion shows. ids: its tokens, or None where not known; status: None where not judged."""
    counts = count_behaviours(text)
    if ids is not None:
        counts["over_200_tokens"] = len(ids) > LONG
    for name, count in counts.items():
        log_metric(f"behaviours/{name}", count)
        if status in rewards.STATUSES:
            side = "correct" if status == rewards.CORRECT else "incorrect"
            log_metric(f"behaviours_{side}/{name}", count)


def log_cells(log_metric, nums, target, statuses):
    """Logs whether each Countdown problem was solved, under the name of its cell."""
    for cell, status in zip(cells(nums, target), statuses, strict=True):
        if cell is not None:
            size, kind = cell
            log_metric(f"cells/{size}_{CELL_METRICS[kind]}".replace(" ", "_"), float(status == rewards.CORRECT))


def log_mistakes(log_metric, completions, target, statuses):
    """Logs for each completion of a Countdown problem which of MISTAKES it makes: 1 for that one, 0 for the others."""
    for completion, value, status in zip(completions, target, statuses, strict=True):
        if status not in rewards.STATUSES:  # a row of another task
            continue
        made = None
        if status != rewards.CORRECT:
            made = name_mistake(completion_text(completion), value)
        for mistake in MISTAKES:
            log_metric(f"mistakes/{mistake}", float(mistake == made))
