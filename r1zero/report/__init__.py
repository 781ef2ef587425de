"""What was learned: the console, a run's folder and its page."""
