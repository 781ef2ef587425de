"""A reward for random text, where those of rewards.py would all be 0."""


def letters_reward(completions, **columns):
    """A tenth for each different character, so that the completions of a group differ."""
    return [len(set(text)) / 10 for text in completions]
