"""What would stop it: recipe, machine, data and model are read and checked before any weight is loaded."""
