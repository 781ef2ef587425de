"""What will it take: steps, memory of a card and disk, as an estimate."""
