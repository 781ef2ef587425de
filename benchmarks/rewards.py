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

from r1zero.grading.arithmetic import exact_value, tokenize  # noqa: E402
from rewards import boxed_math_reward, countdown_reward, multiplication_reward  # noqa: E402

LENGTH, ROWS, ROUNDS = 1400, 4096, 7  # characters of a completion, completions of a batch, batches of which one counts
BOXED_FORMS = {"integers": "{}", "fractions": r"\dfrac{{{}}}{{1001}}", "text": r"\text{{ room {} }}"}
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
# Golds of the kind that physics and engineering have; the answer is another one, or the same with a factor too many
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
    """LENGTH characters of the kind that stands before an answer."""
    text = ""
    while len(text) < LENGTH:
        a, b = rng.randint(1, 99), rng.randint(1, 99)
        text += f"Let me try {a} * {b} = {a * b}, then {a * b} - {b} = {a * b - b}. That is not it, so I go on.\n"
    return text[:LENGTH]


def chat(text):
    """A completion as chat messages, the form that TRL's accuracy_reward wants."""
    return [{"role": "assistant", "content": text}]


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
        answer = str(numbers[0])
        for number in numbers[1:]:
            answer += f" {rng.choice('+-*/')} {number}"
        value = exact_value(tokenize(answer))
        completions.append(f"{reasoning(rng)}</think>\n<answer>{answer}</answer>")
        nums.append(numbers)
        target.append(value if len(nums) % 2 else 100)
    return completions, nums, target


def multiplication_columns(rng, text):
    """Products of two numbers of three digits; every second one is right. text: what stands before the answer."""
    completions, product = [], []
    for row in range(ROWS):
        right = rng.randint(100, 999) * rng.randint(100, 999)
        completions.append(f"{text}<answer>{right + row % 2}</answer>")
        product.append(str(right))
    return completions, product


def boxed_math_columns(rng, text, form):
    """Boxes of one of BOXED_FORMS; every second one is right. text: what stands before the answer."""
    completions, solution = [], []
    for row in range(ROWS):
        right = rng.randint(1, 1000)
        completions.append(rf"{text} so it is \boxed{{{form.format(right + row % 2)}}}.")
        solution.append(form.format(right))
    return completions, solution


def algebra_columns(text):
    """Every pair of ALGEBRA with 50 numbers in K's place. text: what stands before the answer."""
    completions, solution = [], []
    for k in range(2, 52):
        for gold, answer in ALGEBRA:
            completions.append(chat(rf"{text} so it is \boxed{{{answer.replace('K', str(k))}}}."))
            solution.append(f"${gold.replace('K', str(k))}$")
    return completions, solution


def formula_columns(text):
    """Every one of FORMULAS against every other, and against itself with a factor. text: as in algebra_columns."""
    completions, solution = [], []
    for gold in FORMULAS:
        for other in FORMULAS:
            answer = other
            if other == gold:
                answer = other.replace("=", r"=3 \cdot ") if "=" in other else rf"3 \cdot {other}"
            completions.append(chat(rf"{text} so it is \boxed{{{answer}}}."))
            solution.append(f"${gold}$")
    return completions, solution


def measure_what_text_and_numbers_decide(rng, text):
    print(f"completions of {LENGTH:,} characters, one core:")
    rate = fastest(countdown_reward, *countdown_columns(rng))
    print(f"  countdown_reward                    {rate:>9,.0f} /s")
    rate = fastest(multiplication_reward, *multiplication_columns(rng, text))
    print(f"  multiplication_reward               {rate:>9,.0f} /s")
    for what, form in BOXED_FORMS.items():
        rate = fastest(boxed_math_reward, *boxed_math_columns(rng, text, form))
        print(f"  boxed_math_reward, {what:<16} {rate:>9,.0f} /s")


def measure_formulas(what, completions, solution, right):
    """Compares boxed_math_reward with TRL's accuracy_reward on formulas, of which so many are right."""
    from trl.rewards import accuracy_reward  # imports torch, which nothing else here needs

    print(f"{what}, {len(completions)} different pairs, wall-clock time:")
    boxed_math_reward([chat(r"\boxed{x+x}")], ["$2x$"])  # starts the helper process
    rates = {}
    for name, reward in {"TRL's accuracy_reward": accuracy_reward, "boxed_math_reward": boxed_math_reward}.items():
        started = time.perf_counter()
        scores = reward(completions, solution)
        rates[name] = len(completions) / (time.perf_counter() - started)
        found = sum(score is not None and score >= 1 for score in scores)
        print(f"  {name:<35} {rates[name]:>9,.0f} /s, {found} right of {right}")
    times = rates["boxed_math_reward"] / rates["TRL's accuracy_reward"]
    print(f"  {times:.1f} times TRL's, with {os.cpu_count()} cores")


def measure_answers_that_never_end(completions, solution):
    """A batch of 16 pairs, of which 8 are right, and 48 answers that computer algebra would never be done with."""
    bombs = []
    for i in range(24):
        bombs += [rf"\boxed{{9^{{9^{{9^9}}}}+{i}}}", rf"\boxed{{(10^9)!+{i}x}}"]
    batch = completions[:16] + [chat(bomb) for bomb in bombs]
    started = time.perf_counter()
    scores = boxed_math_reward(batch, solution[:16] + ["2x"] * len(bombs))
    seconds = time.perf_counter() - started
    right = sum(score > 1 for score in scores)
    print(f"  a batch of {len(batch)} with {len(bombs)} that never end: {seconds:.1f} s, {right} right of 8")


def main():
    rng = random.Random(0)
    text = reasoning(rng)
    measure_what_text_and_numbers_decide(rng, text)
    measure_formulas("wrong formulas", *formula_columns(text), right=0)
    completions, solution = algebra_columns(text)
    measure_formulas("half of them right", completions, solution, right=len(completions) // 2)
    measure_answers_that_never_end(completions, solution)


if __name__ == "__main__":
    main()
