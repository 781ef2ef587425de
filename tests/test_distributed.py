"""Runs of several processes and on two machines train as one process does, all on the CPU, from the shipped configs.

bash tests/run.sh --all tests/test_distributed.py
"""

import pytest
from conftest import assert_same, distance
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(launch_tiny):
    """The reference: one process with the whole batch, which samples and computes as TRL does."""
    return launch_tiny("single", processes=1, trim_padding=False, drop_finished=False)


@pytest.mark.parametrize(
    ("strategy", "machines", "kind"),
    [
        ("ddp", 1, "MULTI_CPU"),  # what MULTI_GPU becomes on the CPU
        ("ddp", 2, "MULTI_CPU"),
        ("zero1", 1, "DEEPSPEED 1"),
        ("zero2", 1, "DEEPSPEED 2"),
        ("zero2", 2, "DEEPSPEED 2"),
        ("zero3", 1, "DEEPSPEED 3"),
        ("zero3_offload", 1, "DEEPSPEED 3"),
        ("fsdp2", 1, "FSDP"),
    ],
)
def test_two_processes_train_as_one(launch_tiny, alone, tiny_model, strategy, machines, kind):
    run = launch_tiny(strategy, machines=machines)
    assert run.said("ran as") == [f"2 processes on {machines} machines, {kind}"]
    assert_same(run, alone, tiny_model)


def test_two_processes_train_as_trl_if_one_has_no_signal(launch_tiny, tiny_model):
    few = {"beta": 0.0, "reward_funcs": "tests/stand_in/letters.py:first_group_reward"}
    left_out = launch_tiny("zero2", tokens_per_pass=40, **few)
    expected = launch_tiny("zero2", trim_padding=False, **few)
    assert left_out.grad_norms() == pytest.approx(expected.grad_norms(), rel=1e-4, abs=1e-6)
    initial = load_file(tiny_model / "model.safetensors")
    moved = distance(expected.weights(), initial)
    assert moved > 0.1 and distance(left_out.weights(), expected.weights()) < 1e-3 * moved
