"""The program in a completion is found.   bash tests/run.sh tests/test_extract.py

That tags and boxes are found stands in test_rewards.py, with the rewards that read them.
"""

import pytest

from r1zero.grading.extract import python_block


@pytest.mark.parametrize(
    ("text", "program"),
    [
        pytest.param("```python\nprint(1)\n```", "print(1)", id="a block"),
        pytest.param("So:\n```python\na\n\n  b\n```\nDone.", "a\n\n  b", id="lines between text"),
        pytest.param("```python\na\n```\n```python\nb\n```", "b", id="the last block counts"),
        pytest.param("```python\na\n```\n```python\nb", "a", id="the last complete block counts"),
        pytest.param("```python\na\n```python\nb\n```", "b", id="a block begun anew"),
        pytest.param("```Python \r\na\r\n``` \r\n", "a\r", id="capitals and carriage returns"),
        pytest.param("<answer>```python\na\n```</answer>", "a", id="in tags"),
        pytest.param("```python\nx = '```'\n```", "x = '```'", id="a fence within a line"),
        pytest.param("```python\n```", "", id="an empty block"),
        pytest.param("```python\na\n```\n```text\nb\n```", "a", id="a block in another language"),
        pytest.param("```\na\n```", None, id="no language"),
        pytest.param("```py\na\n```", None, id="another name of the language"),
        pytest.param("```python3\na\n```", None, id="a version"),
        pytest.param("```python\na", None, id="never closed"),
        pytest.param("print(1)", None, id="no block"),
        pytest.param("", None, id="empty"),
        pytest.param("```python\n" * 10**5, None, id="never closed, a hundred thousand times"),
        pytest.param("```" * 10**6, None, id="three megabytes of fences"),
        pytest.param("```python\na\n```\n" * 10**5, "a", id="a hundred thousand blocks"),
    ],
)
def test_last_complete_python_block_is_the_program(text, program):
    assert python_block(text) == program
