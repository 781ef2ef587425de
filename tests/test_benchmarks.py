"""The benchmark of a training step works, on a shape small enough for here.

bash tests/run.sh --all tests/test_benchmarks.py
"""

import pytest
from test_gpu import measure


@pytest.mark.slow
def test_step_is_measured_part_by_part(tmp_path):
    flags = ("--completions", "8", "--max_completion_length", "8")
    row, output = measure(tmp_path, "tiny", "lora", "transformers", *flags)
    assert (row["shape"], row["method"], row["parameters"], row["steps"]) == ("tiny", "lora", 107_072, 1)
    parts = [row[part] for part in ("generation", "log-probabilities", "update")]
    assert all(part > 0 for part in parts) and abs(sum(parts) + row["weight sync"] - row["seconds"]) < 1e-6
    assert row["completion tokens/s"] > 0 and row["estimated GiB"] > 0
    assert "completion tokens/s" in output
