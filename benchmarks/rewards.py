"""Completions a second of the rewards on one core, and the boxed-maths reward against TRL's accuracy_reward.

    python benchmarks/rewards.py

Process time, the best of several rounds; for computer algebra, which works in processes of its own, wall-clock time.
"""

import os
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import rewards  # noqa: E402

LENGTH, ROWS, ROUNDS = 1400, 4096, 7
# Golds and answers that neither text nor exact numbers decide, right and wrong in turn; K is another number each time
ALGEBRA = [
    (r"x^2-K^2", r"(x-K)(x+K)"),
    (r"K\pi r", r"K\pi r^2"),
    (r"2\sqrt{K}", r"\sqrt{4\cdot K}"),
    (r"\frac{\sqrt{K}}{2}", r"\frac{\sqrt{K}}{3}"),
    (r"\frac{1}{x+K}", r"(K+x)^{-1}"),
    (r"(1,K)", r"(2,K)"),
    (r"2\ln K", r"\ln K^2"),
    (r"e^{x+K}", r"e^{x-K}"),
]


def reasoning(rng):
    """LENGTH characters of the kind that stands before an answer."""
    text = ""
    while len(text) < LENGTH:
        a, b = rng.randint(1, 99), rng.randint(1, 99)
        text += f"Let me try {a} * {b} = {a * b}, then {a * b} - {b} = {a * b - b}. That is not it, so I go on.\n"
    return text[:LENGTH]


def fastest(function, *columns):
    """Completions a second in the best round."""
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        function(*columns)
        best = min(best, time.process_time() - started)
    return len(columns[0]) / best


def countdown_columns(rng):
    """Expressions with all four operations in the 3 or 4 numbers given; every second one is right."""
    completions, nums, target = [], [], []
    while len(completions) < ROWS:
        numbers = [rng.randint(1, 99) for _ in range(rng.choice((3, 4)))]
        answer = str(numbers[0]) + "".join(f" {rng.choice('+-*/')} {number}" for number in numbers[1:])
        value = rewards.evaluate(rewards.tokenize(answer))
        completions.append(f"{reasoning(rng)}</think>\n<answer>{answer}</answer>")
        nums.append(numbers)
        target.append(value if len(nums) % 2 else 100)
    return completions, nums, target


def main():
    rng = random.Random(0)
    text = reasoning(rng)
    print(f"completions of {LENGTH:,} characters, one core:")
    print(
        f"  countdown_reward                    {fastest(rewards.countdown_reward, *countdown_columns(rng)):>9,.0f} /s"
    )
    products = [(rng.randint(100, 999), rng.randint(100, 999)) for _ in range(ROWS)]
    answers = [f"{text}<answer>{a * b + i % 2}</answer>" for i, (a, b) in enumerate(products)]
    rate = fastest(rewards.multiplication_reward, answers, [str(a * b) for a, b in products])
    print(f"  multiplication_reward               {rate:>9,.0f} /s")
    for what, form in (("integers", "{}"), ("fractions", r"\dfrac{{{}}}{{1001}}"), ("text", r"\text{{ room {} }}")):
        values = [rng.randint(1, 1000) for _ in range(ROWS)]
        golds = [form.format(value) for value in values]
        boxes = [rf"{text} so it is \boxed{{{form.format(value + i % 2)}}}." for i, value in enumerate(values)]
        print(f"  boxed_math_reward, {what:<16} {fastest(rewards.boxed_math_reward, boxes, golds):>9,.0f} /s")

    from trl.rewards import accuracy_reward  # imports torch, which nothing above needs

    pairs = [
        (gold.replace("K", str(k)), answer.replace("K", str(k))) for k in range(2, 52) for gold, answer in ALGEBRA
    ]
    golds = [f"${gold}$" for gold, _ in pairs]
    completions = [[{"role": "assistant", "content": rf"{text} so it is \boxed{{{answer}}}."}] for _, answer in pairs]
    print(f"computer algebra, {len(pairs)} different pairs, wall-clock time:")
    rewards.boxed_math_reward(completions[:8], golds[:8])  # starts the helper process
    rates = {}
    for name, reward in (("TRL's accuracy_reward", accuracy_reward), ("boxed_math_reward", rewards.boxed_math_reward)):
        started = time.perf_counter()
        right = sum(score is not None and score >= 1 for score in reward(completions, golds))
        rates[name] = len(pairs) / (time.perf_counter() - started)
        print(f"  {name:<35} {rates[name]:>9,.0f} /s, {right} right of {len(pairs) // 2}")
    theirs, ours = rates.values()
    print(f"  {ours / theirs:.1f} times TRL's, with {os.cpu_count()} cores")
    bombs = [rf"\boxed{{9^{{9^{{9^9}}}}+{i}}}" for i in range(24)] + [rf"\boxed{{(10^9)!+{i}x}}" for i in range(24)]
    batch = completions[:16] + [[{"role": "assistant", "content": bomb}] for bomb in bombs]
    started = time.perf_counter()
    right = sum(score > 1 for score in rewards.boxed_math_reward(batch, golds[:16] + ["2x"] * len(bombs)))
    seconds = time.perf_counter() - started
    print(f"  a batch of 64 with 48 that never end: {seconds:.1f} s, {right} right of 8")


if __name__ == "__main__":
    main()
