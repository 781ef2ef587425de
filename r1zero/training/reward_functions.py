"""Load the functions that `reward_funcs` names, from rewards.py or a user's `module:function`, and score with them.

A user's function has TRL's signature, f(completions, **columns) -> list of floats. Its module is a file beside the
data, a file of the current folder, or an installed package. What it logs with TRL's log_extra and log_metric appears
beside ours. The page's reader shows its columns `verdict`, `answer` and `problem`.
"""

import asyncio
import functools
import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from pathlib import Path

from r1zero import ROOT
from r1zero.files import one_line
from r1zero.grading.behaviours import LONG, count_behaviours
from r1zero.grading.extract import completion_text
from r1zero.grading.sandbox import shared_sandbox
from r1zero.grading.verdict import CORRECT, STATUSES, WRONG, Table, Verdict, log_rates
from r1zero.tasks.countdown import CELL_METRICS, cells
from r1zero.training.nan_guard import LARGEST, in_words

OWN_COLUMNS = ("verdict", "answer", "problem")  # of a user's function; its name goes before them in the table


# Names


def ours():
    """Return {name: function} of the reward functions of rewards.py, that is, those with a task."""
    module = load_file(ROOT / "rewards.py", "rewards")
    return {name: value for name, value in vars(module).items() if hasattr(value, "task")}


def load_file(path, name):
    """Load a Python file as a module, once. Raises whatever the file raises."""
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def resolve(names, data_dir, allow_unsandboxed_code=False):
    """Return the functions that `reward_funcs` names (list of str), in order. data_dir: may hold a user's file.

    Raises ValueError for a name without a function, and RuntimeError if code_reward has no sandbox. Both say what to
    type.
    """
    functions = []
    for name in names:
        if ":" in name:
            functions.append(own_function(name, data_dir))
        elif name in ours():
            functions.append(ours()[name])
        else:
            raise ValueError(
                f"reward_funcs names {name}; rewards.py has {', '.join(ours())}, and a function of your own is "
                "named module:function"
            )
    taken = [function.__name__ for function in functions]
    for name in set(taken):
        if taken.count(name) > 1:
            raise ValueError(f"reward_funcs names {taken.count(name)} functions called {name}: rename one of them")
    if "code_reward" in taken:
        shared_sandbox(allow_unsandboxed_code)
    return functions


def own_function(name, data_dir):
    """Return a user's function by its name, module:function. Raises ValueError if it cannot be used."""
    module_name, _, attribute = name.rpartition(":")
    module = load_module(module_name, data_dir)
    function = getattr(module, attribute, None)
    if not inspect.isroutine(function):
        defined = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise ValueError(f"reward_funcs names {name}, and {module_name} has no such function; it has {defined}")
    if function.__name__ in ours():
        raise ValueError(f"reward_funcs names {name}, and rewards.py has a {function.__name__}: give it another name")
    return function


def load_module(name, data_dir):
    """Load a user's module: path.py, or a name beside the data, in this folder, or installed. Raises ValueError."""
    paths = [Path(name)]
    if not name.endswith(".py"):
        in_folder = f"{name.replace('.', '/')}.py"
        paths = [path for path in (Path(data_dir, in_folder), Path(in_folder)) if path.is_file()]
    try:
        if not paths:
            return importlib.import_module(name)
        sys.path.append(str(paths[0].parent.resolve()))  # last, so that the file's neighbours hide nothing of ours
        return load_file(paths[0], f"reward_file_{paths[0].stem}")
    except Exception as error:  # a user's file may raise anything
        raise ValueError(
            f"reward_funcs names {name}, which cannot be imported ({type(error).__name__}: {error}): give "
            f"module:function with a file of {data_dir} or of this folder, or an installed package"
        ) from error


# Scores


def ignore(*_):
    """Stand for log_extra and log_metric if nothing is to be logged."""


def score(function, prompts, completions, columns, ids=None, log_extra=ignore, log_metric=ignore, state=None):
    """Return B rewards (float) and B Verdicts of B completions. Both are None in rows of other tasks.

    columns: {name: B values} of the data without the prompt; ids: B lists of the completions' tokens; log_extra,
    log_metric, state: as TRL's trainer gives them to a reward function. The verdicts are all None if a user's function
    logs none. Raises ValueError unless there are B numbers and B verdicts, and whatever the function raises.
    """
    if hasattr(function, "task"):
        task = function.task
        given = tuple(read_column(columns, name) for name in task.columns)
        verdicts = task.judge(completions, *given)
        task.log(verdicts, given, log_extra, log_metric)
        return task.rewards(verdicts), verdicts

    name, metrics, table = function.__name__, set(), {}

    def see_metric(metric, value):
        metrics.add(metric)
        log_metric(metric, float(value))

    if state is None:
        from transformers import TrainerState  # here, as it takes a second

        state = TrainerState()
    given = function(
        prompts=prompts,
        completions=completions,
        completion_ids=ids or [[] for _ in completions],
        trainer_state=state,
        log_extra=lambda column, values: table.__setitem__(column, list(values)),
        log_metric=see_metric,
        **columns,
    )
    if inspect.iscoroutine(given):  # of an async function
        given = asyncio.run(given)
    rewards = [None if reward is None else float(reward) for reward in given]
    if len(rewards) != len(completions):
        raise ValueError(f"{name} returned {len(rewards)} rewards for {len(completions)} completions")
    for column, values in table.items():
        if len(values) != len(completions):
            raise ValueError(f"{name} logged {len(values)} values of {column} for {len(completions)} completions")
        log_extra(f"{name}_{column}" if column in OWN_COLUMNS else column, values)
    verdicts, nothing = [], [None] * len(completions)
    for status, answer in zip(table.get("verdict", nothing), table.get("answer", nothing), strict=True):
        if status not in (*STATUSES, None):
            raise ValueError(f"{name} logged the verdict {status!r}: wanted one of {STATUSES}, or None")
        verdicts.append(status and Verdict(answer, status))
    if "accuracy" not in metrics:
        log_rates(log_metric, name.removesuffix("_reward"), verdicts)
    return rewards, verdicts


def read_column(columns, name):
    """Return a column of the data, ground_truth for a missing solution. Raises ValueError if there is none."""
    if name == "solution" and name not in columns:
        name = "ground_truth"
    if name not in columns:
        raise ValueError(f"found the columns {sorted(columns)}, wanted {name}")
    return columns[name]


class Scorer:
    """Wraps one reward function of a run for TRL, and logs the behaviours of its completions.

    It logs a value for each scored row: the counts of grading/behaviours.py and whether a completion has more than 200
    tokens as `behaviours/<name>`, the same for right and wrong completions as `behaviours_correct/<name>` and
    `behaviours_incorrect/<name>`, and Countdown's accuracy in each cell, such as `cells/4_numbers_needs_times_divide`.
    """

    def __init__(self, function):
        functools.update_wrapper(self, function)  # its name is the metric's name
        self.function = function
        answer, verdict, problem = (f"{function.__name__}_{column}" for column in ("answer", "verdict", "problem"))
        self.table = function.task.table if hasattr(function, "task") else Table(answer, verdict, (problem,))
        self.own_metrics = set()  # names that a user's function has logged
        self.is_guarded = False  # whether nan_guard handles faults after all processes have their rewards
        self.fault = None  # what went wrong in the last batch, as a line

    @property
    def format_reward(self):
        """Return the reward for a right format alone, None if the function does not give it."""
        return self.task.worth.get(WRONG) if hasattr(self, "task") else None

    def __call__(self, prompts, completions, completion_ids=None, log_extra=ignore, log_metric=ignore, **columns):
        try:
            rewards = self.score(prompts, completions, completion_ids, log_extra, log_metric, columns)
        except Exception as error:  # a user's function may raise anything
            if not self.is_guarded:
                raise
            traceback.print_exc()
            self.fault = f"{self.__name__} raised {type(error).__name__} ({one_line(error)}), see above"
            return [math.inf] * len(completions)  # the other ranks wait for these rewards
        for row, reward in enumerate(rewards if self.is_guarded else ()):
            if reward is not None and not abs(reward) <= LARGEST:  # nor NaN: TRL takes it for None
                self.fault = self.fault or f"{self.__name__} gave {reward} for {in_words(row, prompts, completions)}"
                rewards[row] = math.inf
        return rewards

    def score(self, prompts, completions, ids, log_extra, log_metric, columns):
        """Return the rewards, and log what the completions show. Arguments as in TRL's call."""
        state = columns.pop("trainer_state", None)

        def see_metric(name, value):
            if not hasattr(self, "task") and not name.startswith(("accuracy", "format_rate")):
                self.own_metrics.add(name)
            log_metric(name, value)

        rewards, verdicts = score(self.function, prompts, completions, columns, ids, log_extra, see_metric, state)
        for row, (reward, verdict) in enumerate(zip(rewards, verdicts, strict=True)):
            if reward is not None:
                log_behaviours(log_metric, completion_text(completions[row]), ids and ids[row], verdict)
        if self.__name__ == "countdown_reward":
            for cell, verdict in zip(cells(columns["nums"], columns["target"]), verdicts, strict=True):
                if cell is not None:
                    numbers, kind = cell
                    name = f"cells/{numbers}_{CELL_METRICS[kind]}".replace(" ", "_")
                    log_metric(name, float(verdict.status == CORRECT))
        return rewards


def log_behaviours(log_metric, text, ids, verdict):
    """Log the behaviours of one completion. ids: its tokens, None if unknown; verdict: None if it was not judged."""
    counts = count_behaviours(text)
    if ids is not None:
        counts["over_200_tokens"] = len(ids) > LONG
    for name, count in counts.items():
        log_metric(f"behaviours/{name}", count)
        if verdict is not None:
            side = "correct" if verdict.status == CORRECT else "incorrect"
            log_metric(f"behaviours_{side}/{name}", count)
