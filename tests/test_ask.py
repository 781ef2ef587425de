"""A model is asked a problem.   bash tests/run.sh tests/test_ask.py"""

import builtins

from r1zero import ask


def test_problems_are_asked_for_answered_and_judged(tiny_model, monkeypatch, capsys):
    """The tiny model's weights are random: its answer is none."""
    typed = iter(["3 5 is 8", "3, 5 -> 8"])

    def read(prompt):
        return next(typed, None) or (_ for _ in ()).throw(EOFError)

    monkeypatch.setattr(builtins, "input", read)
    ask.main(["--model", str(tiny_model), "--max_completion_length", "8", "--seed", "0"])
    refused, _, said = capsys.readouterr().out.partition("\n")
    assert "found '3 5 is 8', wanted a problem of countdown, such as \"3 5 7 -> 16\"" in refused
    assert "Using the numbers [3, 5], create an equation that equals 8." in said
    assert said.endswith("\nno answer, reward 0\n\n")
    ask.main(
        ["--model", str(tiny_model), "--max_completion_length", "2", "--task", "none", "--temperature", "0", "hello"]
    )
    assert capsys.readouterr().out.startswith("hello")
