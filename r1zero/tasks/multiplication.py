"""The multiplication task's problems: pairs of factors."""


def draw_factors(digits, wanted, rng):
    """Different pairs (left, right) of so many digits each, in random order; a * b and b * a are the same problem.

    digits: two ints; wanted: how many pairs. Raises ValueError where fewer exist.
    """
    (left_low, left_high), (right_low, right_high) = ((10 ** (n - 1), 10**n) for n in digits)
    existing = (left_high - left_low) * (right_high - right_low)
    if digits[0] == digits[1]:
        existing = (existing + left_high - left_low) // 2  # the squares have no other order
    if wanted > existing:
        raise ValueError(
            f"{existing:,} different products of {digits[0]} x {digits[1]} digits exist, wanted {wanted:,}: "
            "lower --train_size and --test_size, or give more --digits"
        )
    found = {}
    while len(found) < wanted:
        lefts = rng.integers(left_low, left_high, wanted).tolist()
        rights = rng.integers(right_low, right_high, wanted).tolist()
        for left, right in zip(lefts, rights, strict=True):
            found.setdefault((min(left, right), max(left, right)), (left, right))
    pairs = list(found.values())
    return [pairs[i] for i in rng.permutation(len(pairs))[:wanted]]
