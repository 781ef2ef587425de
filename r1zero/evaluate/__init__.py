"""How good is a model: its completions of held-out problems, scored."""
