"""Extract the answer of a completion: between tags, in a box, or in a block of Python. All of it in linear time."""

import re

BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is matched with its backslash, and not counted
UNBRACED = re.compile(r"[^\s$]*")


def completion_text(completion):
    """Return the text of a completion, which TRL gives as a string or as a list of chat messages."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def extract_answer(text):
    """Return the content of the last complete <answer>...</answer>, stripped, or None if there is none.

    >>> extract_answer("<answer>1+2</answer> no, wait: <answer> 2*3 </answer>")
    '2*3'
    """
    last_close = text.rfind("</answer>")
    if last_close < 0:
        return None
    start = text.rfind("<answer>", 0, last_close)
    if start < 0:
        return None
    start += len("<answer>")
    return text[start : text.index("</answer>", start)].strip()


def last_box(text):
    r"""Return the content, stripped, of the last \boxed{...} or \fbox{...} that closes and has content, or None.

    Braces may nest to any depth. Escaped braces do not count. `\boxed 5` is a box too.

    >>> last_box(r"\boxed{1} so \boxed{\frac{1}{2}}, that is \boxed{"), last_box(r"\boxed 5."), last_box(r"\boxed{ }")
    ('\\frac{1}{2}', '5', None)
    """
    end = len(text)
    for command in reversed(list(BOX.finditer(text))):
        start = command.end()
        if text.startswith("{", start):
            content = braced(text, start, end)
            if content is None:
                end = command.start()  # a brace that opens before this and has not closed here never closes
        else:
            content = UNBRACED.match(text, start)[0].rstrip(".,;:")
        if content:
            return content
    return None


def braced(text, start, end):
    """Return the text, stripped, between the brace at `start` and the one that closes it before `end`, or None."""
    depth = 0
    for token in BRACE.finditer(text, start, end):
        if token[0] == "{":
            depth += 1
        elif token[0] == "}":
            depth -= 1
        if depth == 0:
            return text[start + 1 : token.start()].strip()
    return None


def python_block(text):
    """Return the content of the last complete ```python block, or None. A fence begins or ends a line.

    >>> python_block("First:\\n```python\\nprint(1)\\n```\\nBetter:\\n```python\\nprint(2)\\n```\\n")
    'print(2)'
    """
    block = lines = None
    for line in text.split("\n"):
        fence = line.strip().lower() if "```" in line else ""
        if fence.endswith("```python"):
            lines = []
        elif lines is not None and fence.startswith("```"):
            block, lines = "\n".join(lines), None
        elif lines is not None:
            lines.append(line)
    return block
