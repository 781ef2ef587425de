"""A reward for random text, where those of rewards.py would all be 0."""


def letters_reward(completions, **columns):
    """A tenth for each different character, so that the completions of a group differ."""
    return [len(set(text)) / 10 for text in completions]


def first_group_reward(completions, trainer_state, **columns):
    """letters_reward for the first four completions of the first process in the first step, otherwise one for all."""
    from accelerate import PartialState

    signal = 4 if PartialState().is_main_process and trainer_state.global_step == 0 else 0
    return letters_reward(completions[:signal]) + [0.1] * (len(completions) - signal)
