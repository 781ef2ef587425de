"""What was learned: show it on the console and on the page of a run's folder."""
