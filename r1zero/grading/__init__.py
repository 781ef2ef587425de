"""Is it right: answers are extracted, compared exactly, worked out or run, and what a text shows is counted."""
