"""A row's tests are read, and outputs compared with them.   bash tests/run.sh tests/test_program_tests.py

The cases stand in tests/cases/program_tests.tsv. An output is compared with the lines 1 and 2, a result with [1, 2].
"""

import json

import pytest
from conftest import each_case

from r1zero.grading.program_tests import is_expected, parse_tests


@each_case("program_tests.tsv")
def test_tests_are_read_and_outputs_compared(case):
    given, expected = json.loads(case["given"]), json.loads(case["expected"])
    if case["kind"] == "tests" and expected == "refused":
        with pytest.raises(ValueError, match="wanted"):
            parse_tests(given)
    elif case["kind"] == "tests":
        cases, name = parse_tests(given)
        assert [list(map(list, cases)), name] == expected
    else:
        output = given.encode(errors="surrogateescape")
        right = ("1\n2", None) if case["kind"] == "output" else (["[1, 2]", [1, 2]], "f")
        assert is_expected(output, *right) == expected


@pytest.mark.parametrize("output", [b"[" * 10**6, b"9" * 10**6], ids=["too deep", "too long a number"])
def test_result_that_cannot_be_read_is_not_expected(output):
    assert not is_expected(output, ["[1, 2]", [1, 2]], "f")


def test_result_may_stand_in_a_list_of_its_own():
    assert is_expected(b"[1, 2]", ["[[1, 2]]", [[1, 2]]], "f")
