"""Countdown's reward with other rewards for the format alone than TinyZero's 0.1: 0 and 0.5."""

from dataclasses import replace

from r1zero.grading.verdict import CORRECT, NO_ANSWER, WRONG
from rewards import countdown_reward


def format_0(completions, nums, target, log_extra=None, log_metric=None, **kwargs):
    return format_0.task.score(completions, (nums, target), log_extra, log_metric)


def format_50(completions, nums, target, log_extra=None, log_metric=None, **kwargs):
    return format_50.task.score(completions, (nums, target), log_extra, log_metric)


for function, worth in ((format_0, 0.0), (format_50, 0.5)):
    function.task = replace(countdown_reward.task, worth={NO_ANSWER: 0.0, WRONG: worth, CORRECT: 1.0})
