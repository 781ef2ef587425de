"""What will it take: steps, hours, memory of a card and disk, as an estimate."""
