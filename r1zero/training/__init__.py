"""What is added to TRL: each file holds one thing that its trainer has no setting for."""
