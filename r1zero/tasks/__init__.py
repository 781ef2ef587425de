"""What is asked: the prompts, the problems that are made here or read, and the rows that they are written as."""
