"""Read the tests of a row of code, and compare the output of a program with what they expect."""

import contextlib
import json


def parse_tests(text):
    """Return (cases, fn_name) of a row's tests (str): a list of (stdin, expected), and a str or None.

    Without fn_name, both are text; a list in the data is a list of lines. With fn_name, stdin is the JSON list of the
    arguments, which the data give as a list or as text with one JSON value a line. expected is the list of results
    that are right: the output as it stands and, if it is JSON, its value. Raises ValueError if the text has another
    form.

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
    """Return an input or output as text (str). value: that text, or a list of its lines."""
    lines = value if isinstance(value, list) else [value]
    if not all(isinstance(line, str) for line in lines):
        raise ValueError(f"a test has {str(value)[:80]}, wanted text or a list of lines")
    return "\n".join(lines)


def as_arguments(value):
    """Return the JSON list (str) of a call's arguments. value: that list, or a text with one JSON value a line."""
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
    """Return the results (list) that are right if the data give a call's output as `value`."""
    results = [value]
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            results.append(json.loads(value))
    return results


def text_lines(text):
    """Return the lines without whitespace at their ends, and without empty lines at the end."""
    return [line.rstrip() for line in text.rstrip().split("\n")]


def is_expected(output, expected, fn_name):
    """Return whether an output (bytes) is the expected text, or with fn_name the JSON of one of the expected values.

    A result is also right if it is the only item of an expected list: some data sets wrap each output once more.

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
