"""The tests of a row of code: how they are read, and whether the output of a program is what they expect."""

import contextlib
import json


def parse_tests(text):
    """Reads a row's tests: (cases, fn_name), where cases is a list of (stdin, expected) and fn_name a str or None.

    Without fn_name both are text; given as a list, its lines. With it, stdin is the JSON list of arguments, given as a
    list or as text with one JSON value a line, and expected holds the accepted results: the output as it stands, and
    as the JSON that it may be. Raises ValueError where the text is not of this form.

    >>> parse_tests('{"inputs": ["1 2"], "outputs": ["3"]}')
    ([('1 2', '3')], None)
    >>> parse_tests('{"inputs": ["[1, 2]\\\\n3"], "outputs": ["6"], "fn_name": "total"}')
    ([('[[1, 2], 3]', ['6', 6])], 'total')

    Source: prime_code/testing_util.py in verl, for PRIME-RL/Eurus-2-RL-Data.
    """
    try:
        tests = json.loads(text)
        inputs, outputs, fn_name = tests["inputs"], tests["outputs"], tests.get("fn_name")
    except (ValueError, TypeError, KeyError) as error:
        wanted = '{"inputs": [...], "outputs": [...]}'
        raise ValueError(f"tests are {str(text)[:80]!r} ({error!r}), wanted the JSON of {wanted}") from error
    if not (isinstance(inputs, list) and isinstance(outputs, list) and 0 < len(inputs) == len(outputs)):
        found = f"inputs {str(inputs)[:80]} and outputs {str(outputs)[:80]}"
        raise ValueError(f"tests have {found}, wanted two lists of one length")
    if fn_name is None:
        return [(as_text(given), as_text(output)) for given, output in zip(inputs, outputs, strict=True)], None
    if not (isinstance(fn_name, str) and fn_name.isidentifier()):
        raise ValueError(f"tests have fn_name {fn_name!r}, wanted the name of a function")
    return [(as_arguments(given), as_results(output)) for given, output in zip(inputs, outputs, strict=True)], fn_name


def as_text(value):
    """The text (str) of an input or output that is given as it stands or as a list of its lines."""
    lines = value if isinstance(value, list) else [value]
    if not all(isinstance(line, str) for line in lines):
        raise ValueError(f"a test has {str(value)[:80]}, wanted text or a list of lines")
    return "\n".join(lines)


def as_arguments(value):
    """The JSON list (str) of a call's arguments."""
    arguments = value
    if isinstance(value, str):
        lines = [line for line in value.split("\n") if line.strip()]
        try:
            arguments = [json.loads(line) for line in lines]
        except ValueError as error:
            raise ValueError(f"a call has arguments {value[:80]!r}, wanted one JSON value a line") from error
    if not isinstance(arguments, list):
        raise ValueError(f"a call has arguments {str(value)[:80]}, wanted a list of them")
    return json.dumps(arguments)


def as_results(value):
    """The results (list) that are right where a call's output is given as `value`."""
    results = [value]
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            results.append(json.loads(value))
    return results


def text_lines(text):
    """Lines without the whitespace that follows them, and without the empty ones at the end."""
    return [line.rstrip() for line in text.rstrip().split("\n")]


def is_expected(output, expected, fn_name):
    """Whether an output (bytes) is the expected text, or with fn_name the JSON of one of the expected values.

    A result is also right where it is the only item of an expected list: some data sets wrap each output once more.

    >>> is_expected(b"3 \\n", "3", None), is_expected(b"[3]", ["[3]", [3]], "f"), is_expected(b"4", ["3", 3], "f")
    (True, True, False)
    """
    text = output.decode(errors="replace")
    if fn_name is None:
        return text_lines(text) == text_lines(expected)
    try:
        result = json.loads(text)
        return any(value in (result, [result]) for value in expected)
    except (ValueError, RecursionError):
        return False
