"""The commands that train.sh runs, with stand-ins for python, accelerate and nvidia-smi.

bash tests/run.sh tests/test_train_sh.py
"""

import os
import shlex
import subprocess

import pytest
from test_training import ROOT

# Answers what setup.sh and train.sh ask of the machine, writes down every other command, and ends with $STATUS
STAND_IN = """#!/usr/bin/env bash
case "${0##*/} $*" in
nvidia-smi*) exit $((CARDS == 0)) ;;
*sys.prefix*) echo "$FOLDER" ;;
*device_count*) echo "$CARDS" ;;
*)
    printf '%q ' ${CUDA_VISIBLE_DEVICES:+GPU=$CUDA_VISIBLE_DEVICES} "${0##*/}" "$@" >>"$FOLDER/log"
    echo >>"$FOLDER/log"
    exit "$STATUS"
    ;;
esac
"""
ONE = "python train_countdown.py"
TWO = "accelerate launch --config_file configs/accelerate/zero2.yaml --num_processes 2 train_countdown.py"


@pytest.fixture
def train_sh(tmp_path):
    """Runs train.sh where torch sees that many GPUs; returns the exit status and every command as a list of words."""
    for name in ("python", "accelerate", "nvidia-smi"):
        (tmp_path / name).write_text(STAND_IN)
        (tmp_path / name).chmod(0o755)

    def run(*flags, cards=0, status=0, **variables):
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "VIRTUAL_ENV": str(tmp_path)}
        environment |= {"FOLDER": str(tmp_path), "CARDS": str(cards), "STATUS": str(status)} | variables
        (tmp_path / "log").unlink(missing_ok=True)
        ended = subprocess.run(["bash", str(ROOT / "train.sh"), *flags], cwd="/", env=environment, timeout=60)
        return ended.returncode, [shlex.split(line) for line in (tmp_path / "log").read_text().splitlines()]

    return run


@pytest.mark.parametrize(
    ("cards", "variables", "expected"),
    [
        pytest.param(0, {}, ONE, id="nothing set and no GPU"),
        pytest.param(0, {"BASE_MODEL": "my model"}, f"{ONE} --model_name_or_path 'my model'", id="BASE_MODEL"),
        pytest.param(0, {"DATA_DIR": "data/x"}, f"{ONE} --data_dir data/x", id="DATA_DIR"),
        pytest.param(2, {"ROLLOUT_TP_SIZE": "2"}, f"{TWO} --vllm_tensor_parallel_size 2", id="ROLLOUT_TP_SIZE"),
        pytest.param(
            0, {"EXPERIMENT_NAME": "a b"}, f"{ONE} --run_name 'a b' --output_dir 'outputs/a b'", id="EXPERIMENT_NAME"
        ),
        pytest.param(0, {"BASE_MODEL": "", "N_GPUS": ""}, ONE, id="set and empty"),
        pytest.param(1, {}, f"GPU=0 {ONE}", id="one GPU"),
        pytest.param(2, {}, TWO, id="two GPUs"),
        pytest.param(8, {"N_GPUS": "2"}, TWO, id="two of eight GPUs"),
        pytest.param(8, {"N_GPUS": "1"}, f"GPU=0 {ONE}", id="one of eight GPUs"),
        pytest.param(1, {"CUDA_VISIBLE_DEVICES": "3"}, f"GPU=3 {ONE}", id="a GPU chosen"),
        pytest.param(
            2, {"CUDA_VISIBLE_DEVICES": "3,4", "N_GPUS": "1"}, f"GPU=3 {ONE}", id="the first of those chosen"
        ),
    ],
)
def test_variables_and_gpus_become_one_command(train_sh, cards, variables, expected):
    status, commands = train_sh(cards=cards, **variables)
    assert status == 0 and commands[-1] == shlex.split(expected)


def test_flags_follow_those_of_the_variables_and_keep_their_spaces(train_sh):
    flags = ["--config", "my recipes/x.yaml", "--model_name_or_path", "other", "--run_name", "it's *"]
    command = train_sh(*flags, BASE_MODEL="model")[1][-1]
    assert command == ["python", "train_countdown.py", "--model_name_or_path", "model", *flags], "the last one counts"


def test_installs_once_and_vllm_only_beside_a_gpu(train_sh):
    install = ["python", "-m", "pip", "install", "-q", "-e"]
    assert train_sh()[1][0] == [*install, "."]
    assert len(train_sh()[1]) == 1
    assert train_sh(cards=1)[1][0] == [*install, ".[gpu]"]


def test_status_of_a_failed_installation_or_training_is_passed_on(train_sh):
    status, commands = train_sh(status=3)
    assert status == 3 and len(commands) == 1, "nothing is trained"
    train_sh()
    assert train_sh(status=7)[0] == 7


def test_n_gpus_that_is_no_number_trains_nothing(train_sh):
    status, commands = train_sh(N_GPUS="two")
    assert status == 1 and [words[1] for words in commands] == ["-m"], "installed, and no more"
