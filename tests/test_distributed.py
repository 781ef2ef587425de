"""Runs of several processes and on two machines train as one process does, all on the CPU, from the shipped configs.

bash tests/run.sh --all tests/test_distributed.py
"""

import pytest
from conftest import assert_same, distance
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(launch_tiny):
    """The reference: one process with the whole batch."""
    return launch_tiny("single", processes=1)


def test_reference_run_learns_something_to_compare(alone, tiny_model):
    assert alone.said("ran as") == ["1 processes on 1 machines, NO"]
    assert min(alone.grad_norms()) > 0.1
    assert distance(load_file(tiny_model / "model.safetensors"), alone.weights()) > 0.1


@pytest.mark.parametrize(
    ("strategy", "kind"),
    [
        ("ddp", "MULTI_CPU"),  # what MULTI_GPU becomes on the CPU
        ("zero1", "DEEPSPEED 1"),
        ("zero2", "DEEPSPEED 2"),
        ("zero3", "DEEPSPEED 3"),
        ("zero3_offload", "DEEPSPEED 3"),
        ("fsdp2", "FSDP"),
    ],
)
def test_two_processes_train_as_one(launch_tiny, alone, tiny_model, strategy, kind):
    run = launch_tiny(strategy)
    assert run.said("ran as") == [f"2 processes on 1 machines, {kind}"]
    assert_same(run, alone, tiny_model)


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_two_processes_train_without_padding_as_one_with_it(launch_tiny, alone, tiny_model, strategy):
    assert_same(launch_tiny(strategy, trim_padding=True, drop_finished=True), alone, tiny_model)


def test_two_processes_train_as_trl_if_one_has_no_signal(launch_tiny, tiny_model):
    few = {"beta": 0.0, "reward_funcs": "tests/stand_in/letters.py:first_group_reward"}
    left_out = launch_tiny("zero2", trim_padding=True, tokens_per_pass=40, **few)
    expected = launch_tiny("zero2", **few)
    assert left_out.grad_norms() == pytest.approx(expected.grad_norms(), rel=1e-4, abs=1e-6)
    initial = load_file(tiny_model / "model.safetensors")
    moved = distance(expected.weights(), initial)
    assert moved > 0.1 and distance(left_out.weights(), expected.weights()) < 1e-3 * moved


@pytest.mark.parametrize(("strategy", "kind"), [("ddp", "MULTI_CPU"), ("zero2", "DEEPSPEED 2")])
def test_two_machines_train_as_one(launch_tiny, alone, tiny_model, strategy, kind):
    run = launch_tiny(strategy, machines=2)
    assert run.said("ran as") == [f"2 processes on 2 machines, {kind}"]
    assert_same(run, alone, tiny_model)
