"""What is added to TRL: each file adds one thing that TRL's trainer has no setting for."""
