r"""Texts that a model might write to break what reads them, and what the rewards, counts and page make of them.

python tests/hostile_texts.py 1000000 --algebra   # prints that as JSON, for texts of a megabyte
"""

import json
import resource
import sys

from r1zero.grading import algebra as symbolic_helper
from r1zero.grading.behaviours import count_behaviours, name_mistake
from r1zero.grading.extract import extract_answer
from r1zero.report.completions import read_completion
from r1zero.report.run_folder import TABLES_BEFORE
from rewards import boxed_math_reward, code_reward, countdown_reward, multiplication_reward

MANY_NAMES = "+".join(f"a_{{{i}}}" for i in range(120))
TESTS = '{"inputs": ["1"], "outputs": ["2"]}'

# Each stands in an answer, in a box and in a program. None is right where 9, 9 and 9 are to make 9.
EXPRESSIONS = {
    "a tower of powers": "9**9**9",
    "floor division": "9//9*9",
    "remainder": "9%9+9",
    "shifts": "9<<9<<9",
    "a conditional": "9 if 9 else 9",
    "a lambda": "(lambda: 9)()",
    "code": "__import__('os').system('exit 9')",
    "factorials": "9!!!!!!!!!",
    "a tower of factorials": "(((9!)!)!)!",
    "digits of another script": "٩-٩+٩",
    "wide digits": "９－９＋９",
    "superscripts": "9⁹⁹",
    "a Roman number": "Ⅸ",
    "typographic signs": "9×9÷9−9",
    "an underscore": "9_9",
    "hexadecimal": "0x9",
    "an endless exponent": "9.0e999999999",
    "an endless negative exponent": "9.0e-999999999",
    "more digits than Python prints": "9" * 3000 + "*" + "9" * 3000,
    "a decimal without end": "0." + "9" * 5000,
    "a complex number": "9j",
    "infinity": "Infinity",
    "not a number": "nan",
    "minus infinity": "-inf",
    "a division by zero": "9/(9-9)+9",
    "points": "9.9.9",
    "a comma": "9,9,9",
    "a zero in the middle": "9-9\0+9",
    "a lone surrogate": "9-9+9\ud800",
    "a space of no width": "9-9+\u200b9",
    "a combining character": "9-9+9\u0301",
    "a backspace": "9-9+8\b9",
    "written from right to left": "\u202e9+9-9\u202c",
    "braces of a template": "{{ 9 * 9 }}{% raw %}",
    "a dollar and a brace": "${9*9}",
    "a format": "%s%n{0.__class__}",
    "a fraction over zero": r"\frac{9}{0}",
    "a power of zero": r"0^{-1}",
    "powers in LaTeX": r"9^{9^{9^{9^9}}}",
    "powers without braces": "9^9^9^9",
    "ten to the ten to the ten": r"10^{10^{10}}",
    "e to a large number": r"e^{999999999}",
    "a large exponent": r"9\times10^{999}",
    "a small exponent": r"9\times10^{-999}",
    "a binomial of large numbers": r"\binom{10^9}{5\cdot10^8}",
    "a sum without end": r"\sum_{n=1}^{10^{12}} \frac{1}{n}",
    "a product without end": r"\prod_{k=1}^{10^{9}} k",
    "an imaginary power": "i^i",
    "a root of a negative number": r"\sqrt{-1}",
    "a logarithm of zero": r"\log 0+\ln(-1)",
    "a pole": r"\tan(\pi/2)",
    "an arcsine of two": r"\arcsin 2",
    "infinity in LaTeX": r"\infty-\infty",
    "a file to be read": r"\input{/etc/passwd}",
    "a macro of itself": r"\def\x{\x\x}\x",
    "a matrix without end": r"\begin{pmatrix}9",
    "a parenthesis without end": r"\left(9",
    "commands that lack what they need": r"\frac\frac\sqrt\text\binom^_",
    "an unknown command": r"\unknown{9}[9]",
    "dollars": r"$$9\$$",
    "a chain of equations": "x=y=z=9",
    "an equation in many variables": f"{MANY_NAMES}=0",
    "a list of many elements": ",".join(map(str, range(250))),
    "a long number and a name": "9" * 900 + "x",
    "a long decimal number and a name": "0." + "9" * 900 + "x",
    "a tiny number and a name": "0." + "0" * 900 + "9x",
    "a long exponent": "x^{" + "9" * 900 + "}",
    "a long subscript": "x_{" + "9" * 900 + "}",
    "a long divisor": r"\frac{1}{" + "9" * 900 + "x}",
    "a long angle": r"\sin(" + "9" * 900 + ")",
    "a long argument": "x(" + "9" * 900 + ")",
    "a long degree": r"\sqrt[" + "9" * 900 + "]{x}",
    "no degree": r"\sqrt[0]{x}+\sqrt[]{x}",
    "logarithms without a base": r"\log_{1}x+\log_{0}x+\log_{-1}x",
    "an equation that holds where the right one does": f"(y-2x-7)({MANY_NAMES})=0",
    "nested fractions": r"\frac{" * 90 + "9" + "}{9}" * 90,
    "nested exponents": "x^{" * 200 + "9" + "}" * 200,
    "nested functions": r"\sin" * 200 + "x",
    "nested parentheses": "(" * 400 + "x" + ")" * 400,
}

# Each is a whole completion.
WHOLE = {
    "nothing": "",
    "space": " \t\r\n\v\f\x1c\x85\xa0\u2028\u3000",
    "tags the wrong way round": "</answer>9-9+9<answer>",
    "tags in tags": "<answer><answer>9-9</answer>+9</answer></answer>",
    "tags in capitals": "<ANSWER>9-9+9</ANSWER>",
    "wide tags": "＜answer＞9-9+9＜/answer＞",
    "a tag with an attribute": "<answer x='1'>9-9+9</answer>",
    "a tag cut in two": "<ans\0wer>9-9+9</answer>",
    "two closing tags": "</answer></answer>",
    "boxes in boxes": r"\boxed{" * 10**4 + "9" + "}" * 10**4,
    "a box that never closes": r"\boxed{\frac{9}{9}",
    "escaped braces": r"\boxed{\{\{\}} \boxed{\\{9}",
    "a fence that never closes": "```python\nprint(2)",
    "a fence on one line": "```python print(2)```",
    "fences in fences": "```python\n```python\nprint(2)\n```\n```\n```",
    "a fence in capitals": "```PyThOn\nprint(2)\n```",
    "a program of control characters": "```python\n\0\r\x1b\u202e\ud800\n```",
    "the screen is cleared": "\x1b[2J\x1b[3J\x1b[H right",
    "the title of the terminal": "\x1b]0;owned\x07\x1b]2;owned\x1b\\",
    "a link in the terminal": "\x1b]8;;https://example.org\x1b\\click\x1b]8;;\x1b\\",
    "the clipboard of the terminal": "\x1b]52;c;b3duZWQ=\x07",
    "answers asked of the terminal": "\x1b[c\x1b[6n\x1bP$qm\x1b\\",
    "control characters of eight bits": "\x9b31m\x9d0;owned\x9c\x90\x98\x85",
    "a carriage return": "wrong\rright",
    "backspaces": "wrong\b\b\b\b\bright\x7f",
    "another character set": "\x0e\x1b(0lqqk\x0f",
    "bells": "\a" * 100,
    "overrides of direction": "\u202e16 = 5-7*3\u202c \u2066x\u2069 \u200f\u200e\u061c",
    "combining characters": "9" + "\u0300\u0301\u0336\u20dd" * 500,
    "characters that nobody sees": "\u200b\u200d\ufeff\u2060\U000e0041\U000e007f\u00ad",
    "no characters": "\ufffe\uffff\U0010ffff\ue000\ud800\udfff",
    "a script": "<script>document.title = 'owned'</script>",
    "the end of a script": "</script><script>document.title = 'owned'</script>",
    "the end of a script in capitals": "</SCRIPT ><img src=x onerror=\"document.title = 'owned'\">",
    "a comment": "<!--<script>",
    "the end of a comment": "--></script>]]><h1>owned</h1>",
    "an attribute": "\" onclick=\"document.title = 'owned'\" x=\"' onload='owned",
    "the end of the text": "</pre></td></table></div><h1>owned</h1><style>*{display:none}</style>",
    "an address": "javascript:document.title='owned'",
    "entities": "&lt;script&gt;&#60;script&#62;&amp;&nbsp;&",
    "escapes of JSON": "\\u003c/script\\u003e\\\" \\' \\n \\",
    "the end of JSON": '"}]}</script>',
    "a prototype": "__proto__ constructor prototype",
    "the end of a JavaScript text": "`${document.title='owned'}`';alert(1)//",
    "lines of JavaScript": "a\u2028b\u2029c",
    "a fake warning": "\nWARNING at step 9: all is well\n" + "-" * 80,
}

# Each is repeated until it fills a text: what is not linear in the length of a text takes hours for a megabyte of it.
PIECES = [
    *("9", "9*", "9/", "9.", "-", "- ", "9-9", "(", ")", "()", "(9)", "/9", "9 ", "9\n", "x", "xy+", "e^", "9!", "9,"),
    *(" ", "\n", "\t", "\r\n", ". ", "=", "1+1=", "=1", "1=1 no ", "= 1 yes ", "x=", "n't", "’", "İ", "Σ", "ß", "×"),
    *("\\", "\\\\", "{", "}", "{}", r"\{", r"\boxed", r"\boxed ", r"\boxed{", r"\boxed{}", r"\boxed{ ", r"\boxed{9}"),
    *(r"\fbox.", r"\frac{", r"\frac", r"\frac99", r"\text{", r"\text{}", r"\sqrt", "^{", "_", "_{9}", "$", r"\$", "~"),
    *("<answer>", "</answer>", "<answer></answer>", "<answer", "<", "`", "```", "```\n", "```python\n", "python```\n"),
    *("```python\n```\n", "\0", "\ud800", "\u202e", "\u0301", "\x1b[31m", "\r", "<script>", "</script>", "<!--", "&"),
    *(" equals ", r"\times", " wait", "check ", "first, let ", "10 no ", "'", '"', "no", "not "),
]


def in_every_task(text):
    """A completion in which a text is an equation's side, a Countdown answer, a boxed answer and a program."""
    return f"1+1 = {text}\n```python\n{text}\n```\n\\boxed{{{text}}} <answer>{text}</answer>"


def attacks(size):
    """{name: text} of all attacks. size: of a text that is made of a repeated piece, in characters."""
    texts = dict(WHOLE)
    for name, expression in EXPRESSIONS.items():
        texts[name] = in_every_task(expression)
    for piece in PIECES:
        repeated = piece * (size // len(piece))
        texts[f"only {piece!r}"] = repeated
        texts[f"short answers of {piece!r}"] = in_every_task(repeated[:900])  # longer ones are compared as text only
        texts[f"answers of {piece!r}"] = in_every_task(repeated[: size // 4])
    return texts


class NoSandbox:
    """What stands for the sandbox where a process for each program would take too long."""

    def share_passed(self, programs, tests):
        return [0.0 if program is None else 0.5 for program in programs]


def nothing_decided(pairs):
    """What stands for symbolic_helper.ask_helper where computer algebra would take too long."""
    return [None] * len(pairs)


def rewarded(completions):
    """What every reward makes of some completions: {name: a value for each}."""
    number = len(completions)
    return {
        "countdown": countdown_reward(completions, [[9, 9, 9]] * number, [9] * number),
        "multiplication": multiplication_reward(completions, ["391"] * number),
        "boxed number": boxed_math_reward(completions, ["391"] * number),
        "boxed formula": boxed_math_reward(completions, [r"x^2-\frac{1}{3}"] * number),
        "boxed equation": boxed_math_reward(completions, ["y=2x+7"] * number),
        "code": code_reward(completions, [TESTS] * number, sandbox=NoSandbox()),
    }


def scored(texts):
    """What the rewards, the counts and the page make of some texts: {name: a value for each}."""
    return rewarded(texts) | {
        "behaviours": [count_behaviours(text) for text in texts],
        "mistakes": [name_mistake(text, 9) for text in texts],
        "page": [on_the_page(text) for text in texts],
    }


def on_the_page(text):
    """What the page's reader is given of a completion of Countdown."""
    row = {"completion": text, "equation": extract_answer(text), "target": 9, "numbers": "[9]", "verdict": "wrong"}
    return read_completion(row, TABLES_BEFORE)[1]


def main(size, *flags):
    """Prints what is made of all attacks. A process that works longer than only a hang could is ended."""
    resource.setrlimit(resource.RLIMIT_CPU, (300, 300))
    if "--algebra" in flags:
        symbolic_helper.BATCH_SECONDS = 3
    else:
        symbolic_helper.ask_helper = nothing_decided
    print(json.dumps(scored(list(attacks(int(size)).values()))))


if __name__ == "__main__":
    main(*sys.argv[1:])
