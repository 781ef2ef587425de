"""A row's tests are read, and outputs compared with them.   bash tests/run.sh tests/test_program_tests.py"""

import json

import pytest

from r1zero.grading.program_tests import is_expected, parse_tests


@pytest.mark.parametrize(
    ("tests", "parsed"),
    [
        pytest.param({"inputs": ["1\n"], "outputs": ["2\n"]}, ([("1\n", "2\n")], None), id="text"),
        pytest.param({"inputs": [["1", "2"]], "outputs": [["3"]]}, ([("1\n2", "3")], None), id="lists of lines"),
        pytest.param({"inputs": [""], "outputs": ["2"], "fn_name": None}, ([("", "2")], None), id="fn_name is null"),
        pytest.param(
            {"inputs": [[[1, 2], "x"]], "outputs": [[3]], "fn_name": "f"},
            ([('[[1, 2], "x"]', [[3]])], "f"),
            id="a list of arguments",
        ),
        pytest.param(
            {"inputs": ['[1, 2]\n"x"\n'], "outputs": ["3"], "fn_name": "f"},
            ([('[[1, 2], "x"]', ["3", 3])], "f"),
            id="an argument a line",
        ),
        pytest.param({"inputs": [""], "outputs": ["x"], "fn_name": "f"}, ([("[]", ["x"])], "f"), id="no arguments"),
    ],
)
def test_tests_are_read(tests, parsed):
    assert parse_tests(json.dumps(tests)) == parsed


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("{'inputs': ['1'], 'outputs': ['2']}", id="no JSON"),
        pytest.param("[]", id="a list"),
        pytest.param("null", id="null"),
        pytest.param('{"inputs": ["1"]}', id="no outputs"),
        pytest.param('{"outputs": ["1"]}', id="no inputs"),
        pytest.param('{"inputs": [], "outputs": []}', id="no tests"),
        pytest.param('{"inputs": ["1", "2"], "outputs": ["1"]}', id="an output too few"),
        pytest.param('{"inputs": "1", "outputs": "1"}', id="no lists"),
        pytest.param('{"inputs": [1], "outputs": ["1"]}', id="an input that is no text"),
        pytest.param('{"inputs": ["1"], "outputs": [["1", 2]]}', id="a line that is no text"),
        pytest.param('{"inputs": ["1"], "outputs": ["1"], "fn_name": "f()"}', id="a name that is none"),
        pytest.param('{"inputs": ["1"], "outputs": ["1"], "fn_name": 1}', id="a name that is a number"),
        pytest.param('{"inputs": ["[1"], "outputs": ["1"], "fn_name": "f"}', id="arguments that are no JSON"),
        pytest.param('{"inputs": [1], "outputs": ["1"], "fn_name": "f"}', id="arguments that are no list"),
        pytest.param(None, id="None"),
    ],
)
def test_unreadable_tests_are_an_error_that_says_what_is_wanted(text):
    with pytest.raises(ValueError, match="wanted"):
        parse_tests(text)


@pytest.mark.parametrize("output", [b"1\n2", b"1\n2\n", b"1  \r\n2\t\n\n \n"])
def test_output_may_differ_in_whitespace_after_lines(output):
    assert is_expected(output, "1\n2", None) and is_expected(output, "1\n2\n", None)


@pytest.mark.parametrize("output", [b"", b"1", b"1 2", b"\n1\n2", b" 1\n2", b"1\n\n2", b"1\n2\n3", b"1\n2\xff"])
def test_other_outputs_are_not_expected(output):
    assert not is_expected(output, "1\n2", None)


@pytest.mark.parametrize(
    ("output", "right"),
    [
        pytest.param(b"[1, 2]", True, id="the value"),
        pytest.param(b"[1,2]", True, id="the value in other words"),
        pytest.param(b"[[1, 2]]", False, id="a list around it"),
        pytest.param(b"[2, 1]", False, id="another order"),
        pytest.param(b"", False, id="nothing"),
        pytest.param(b"NaN", False, id="not a number"),
        pytest.param(b"[" * 10**6, False, id="too deep to be read"),
        pytest.param(b"9" * 10**6, False, id="a number too long to be read"),
        pytest.param(b"\xff", False, id="no text"),
    ],
)
def test_result_of_a_function_is_compared_as_json(output, right):
    assert is_expected(output, ["[1, 2]", [1, 2]], "f") == right
    assert is_expected(output, ["[[1, 2]]", [[1, 2]]], "f") == (right or output == b"[[1, 2]]"), "in a list of its own"
