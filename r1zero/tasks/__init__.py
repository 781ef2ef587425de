"""What is asked: draw or read problems, make their prompts, and write them as rows."""
