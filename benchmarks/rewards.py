"""Measure completions a second of the rewards on one core, and of boxed maths against TRL's accuracy_reward.

    python benchmarks/rewards.py

Process time, the best of several rounds; wall-clock time if computer algebra works, in processes of its own.
"""

import os
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from r1zero.grading.arithmetic import exact_value, tokenize  # noqa: E402
from rewards import boxed_math_reward, countdown_reward, multiplication_reward  # noqa: E402

LENGTH, ROWS, ROUNDS = 1400, 4096, 7  # characters of a completion, completions of a batch, batches of which one counts
BOXED_FORMS = {"integers": "{}", "fractions": r"\dfrac{{{}}}{{1001}}", "text": r"\text{{ room {} }}"}
# Golds and answers that neither text nor exact numbers decide, right and wrong in turn; K stands for numbers
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
# Golds from physics and engineering; the answer is another one, or the same with a factor of 3
FORMULAS = [
    r"\frac{v_{0}}{r_{0}} \left(1+\frac{r}{r_{0}}\right)^{-3 / 2}",
    r"\sqrt{\frac{4 \pi G \rho}{3}}",
    r"\frac{e^{-3 t}}{10}+C_{1} \cos (t)+C_{2} \sin (t)",
    r"\frac{s+a}{(s+a)^{2}+\omega^{2}}",
    r"-\tau \ln 2",
    r"\left(\frac{t^{2}}{2}+C\right) e^{-2 t}",
    r"2 \sqrt{3} \cos (5 t-\pi / 6)",
    r"V_{0} e^{-\frac{t}{R C}}",
    r"\frac{1}{b-a}\left(e^{-a t}-e^{-b t}\right)",
    r"\frac{1}{\sqrt{1-v^{2} / c^{2}}}",
    r"m g h+\frac{1}{2} m v^{2}",
    r"(1-2 e^{-3 t}) u(t)",
    r"\frac{2 h \nu^{3}}{c^{2}\left(e^{h \nu / k T}-1\right)}",
    r"\frac{3}{4} \frac{K}{L}",
    r"P=100-2.5 Q",
    r"L \frac{d i}{d t}+R i=V",
]


def reasoning(rng):
    """Return LENGTH characters of the kind that stands before an answer."""
    text = ""
    while len(text) < LENGTH:
        a, b = rng.randint(1, 99), rng.randint(1, 99)
        text += f"Let me try {a} * {b} = {a * b}, then {a * b} - {b} = {a * b - b}. That is not it, so I go on.\n"
    return text[:LENGTH]


def report_rate(name, reward, *columns):
    """Print completions a second in the best round."""
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        reward(*columns)
        best = min(best, time.process_time() - started)
    print(f"  {name:<35} {len(columns[0]) / best:>9,.0f} /s")


def countdown_columns(rng):
    """Return expressions with all four operations in the 3 or 4 numbers given; every second one is right."""
    completions, nums, target = [], [], []
    while len(completions) < ROWS:
        numbers = [rng.randint(1, 99) for _ in range(rng.choice((3, 4)))]
        answer = str(numbers[0])
        for number in numbers[1:]:
            answer += f" {rng.choice('+-*/')} {number}"
        value = exact_value(tokenize(answer))
        completions.append(f"{reasoning(rng)}</think>\n<answer>{answer}</answer>")
        nums.append(numbers)
        target.append(value if len(nums) % 2 else 100)
    return completions, nums, target


def measure_text_and_numbers(rng, text):
    """Measure what needs no computer algebra. Every second product and box is right."""
    print(f"completions of {LENGTH:,} characters, one core:")
    report_rate("countdown_reward", countdown_reward, *countdown_columns(rng))
    products = [rng.randint(100, 999) * rng.randint(100, 999) for _ in range(ROWS)]
    completions = [f"{text}<answer>{right + row % 2}</answer>" for row, right in enumerate(products)]
    report_rate("multiplication_reward", multiplication_reward, completions, list(map(str, products)))
    for what, form in BOXED_FORMS.items():
        numbers = [rng.randint(1, 1000) for _ in range(ROWS)]
        completions = [
            rf"{text} so it is \boxed{{{form.format(right + row % 2)}}}." for row, right in enumerate(numbers)
        ]
        report_rate(f"boxed_math_reward, {what}", boxed_math_reward, completions, list(map(form.format, numbers)))


def measure_formulas(what, text, pairs, right):
    """Compare boxed_math_reward with TRL's accuracy_reward on (gold, answer) pairs, of which so many are right."""
    from trl.rewards import accuracy_reward  # imports torch, which nothing else here needs

    print(f"{what}, {len(pairs)} different pairs, wall-clock time:")
    # Chat messages, and golds in $, are the form that TRL's reward wants
    completions = [[{"role": "assistant", "content": rf"{text} so it is \boxed{{{answer}}}."}] for _, answer in pairs]
    solution = [f"${gold}$" for gold, _ in pairs]
    boxed_math_reward([r"\boxed{x+x}"], ["$2x$"])  # starts the helper process
    rates = []
    for name, reward in {"TRL's accuracy_reward": accuracy_reward, "boxed_math_reward": boxed_math_reward}.items():
        started = time.perf_counter()
        scores = reward(completions, solution)
        rates.append(len(completions) / (time.perf_counter() - started))
        found = sum(score is not None and score >= 1 for score in scores)
        print(f"  {name:<35} {rates[-1]:>9,.0f} /s, {found} right of {right}")
    print(f"  {rates[1] / rates[0]:.1f} times TRL's, with {os.cpu_count()} cores")


def main():
    rng = random.Random(0)
    text = reasoning(rng)
    measure_text_and_numbers(rng, text)
    pairs = [(gold, other) for gold in FORMULAS for other in FORMULAS if other != gold]
    pairs += [(gold, gold.replace("=", r"=3 \cdot ") if "=" in gold else rf"3 \cdot {gold}") for gold in FORMULAS]
    measure_formulas("wrong formulas", text, pairs, right=0)
    pairs = [
        (gold.replace("K", str(k)), answer.replace("K", str(k))) for k in range(2, 52) for gold, answer in ALGEBRA
    ]
    measure_formulas("half of them right", text, pairs, right=len(pairs) // 2)


if __name__ == "__main__":
    main()
