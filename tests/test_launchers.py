"""What train.sh, Slurm's script and the launchers' configs start; no training is started.

bash tests/run.sh tests/test_launchers.py
"""

import os
import re
import shlex
import signal
import subprocess
import time

import pytest
import torch
from accelerate.commands import launch
from conftest import PATIENCE, ROOT
from torch.distributed import run as torchrun

STRATEGIES = ROOT / "configs" / "accelerate"
SEVERAL = sorted(path.stem for path in STRATEGIES.glob("*.yaml") if path.stem != "single")

# Answers what setup.sh and train.sh ask of the machine, writes down every other command, and ends with $STATUS
STAND_IN = """#!/usr/bin/env bash
case "${0##*/} $*" in
"nvidia-smi -L") exit $((CARDS == 0)) ;;
nvidia-smi*driver_version*) echo "$DRIVER" ;;
nvidia-smi*compute_cap*) echo "$CAPABILITY" ;;
nvidia-smi*) echo "| NVIDIA-SMI $DRIVER     Driver Version: $DRIVER     CUDA Version: $RUNS     |" ;;
*sys.prefix*) echo "$FOLDER" ;;
*is_available*) exit $((SEES == 0)) ;;
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
        environment |= {"FOLDER": str(tmp_path), "CARDS": str(cards), "STATUS": str(status), "SEES": str(cards)}
        environment |= {"DRIVER": "580.82.07", "RUNS": "13.0", "CAPABILITY": "9.0"} | variables
        (tmp_path / "log").write_text("")
        ended = subprocess.run(
            ["bash", str(ROOT / "train.sh"), *flags],
            cwd="/",
            env=environment,
            timeout=PATIENCE,
            stderr=subprocess.PIPE,
            text=True,
        )
        run.errors = ended.stderr
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


class TestOldGpu:
    """What CUDA 13 does not run on is told before anything is installed."""

    OLD = {"cards": 1, "DRIVER": "550.54.15", "RUNS": "12.4", "SEES": "0"}
    V100 = {"cards": 1, "CAPABILITY": "7.0", "SEES": "0"}

    def test_driver_that_is_too_old_installs_and_trains_nothing(self, train_sh):
        assert train_sh(**self.OLD) == (1, [])
        (line,) = train_sh.errors.splitlines()
        assert "found driver 550.54.15, wanted 580 or newer: type apt-get install nvidia-driver-580" in line
        assert "CUDA_VISIBLE_DEVICES= bash train.sh --config configs/tiny_cpu.yaml" in line

    def test_card_that_is_too_old_installs_and_trains_nothing(self, train_sh):
        assert train_sh(**self.V100) == (1, [])
        (line,) = train_sh.errors.splitlines()
        assert "found compute capability 7.0, wanted 7.5 or more: type" in line
        torch = re.search(r"torch==[\d.]+", (ROOT / "pyproject.toml").read_text())[0]
        assert f"-m pip install {torch} --index-url https://download.pytorch.org/whl/cu126;" in line

    @pytest.mark.parametrize("old", [OLD, V100], ids=["driver", "card"])
    def test_torch_that_sees_it_all_the_same_is_used_without_vllm(self, train_sh, old):
        status, commands = train_sh(**old | {"SEES": "1"})
        assert status == 0 and commands[0][-1] == "." and commands[-1][-1] == "train_countdown.py"

    def test_old_driver_with_cuda_compat_is_none(self, train_sh):
        assert train_sh(**self.OLD | {"RUNS": "13.0"})[1][0][-1] == ".[gpu]"

    def test_gpu_that_is_hidden_on_purpose_is_left_alone(self, train_sh):
        status, commands = train_sh("--config", "configs/tiny_cpu.yaml", **self.OLD, CUDA_VISIBLE_DEVICES="")
        assert status == 0 and commands[0][-1] == "." and len(commands) == 2

    def test_very_old_driver_without_a_compute_capability_is_told_too(self, train_sh):
        """nvidia-smi has known that field since driver 510."""
        old = {"DRIVER": "470.182.03", "RUNS": "11.4", "CAPABILITY": 'Field "compute_cap" is not a valid field.'}
        assert train_sh(**self.OLD | old)[0] == 1
        assert "found driver 470.182.03, wanted 580" in train_sh.errors and len(train_sh.errors.splitlines()) == 1


def test_status_of_a_failed_installation_or_training_is_passed_on(train_sh):
    status, commands = train_sh(status=3)
    assert status == 3 and len(commands) == 1, "nothing is trained"
    train_sh()
    assert train_sh(status=7)[0] == 7


def test_n_gpus_that_is_no_number_trains_nothing(train_sh):
    status, commands = train_sh(N_GPUS="two")
    assert status == 1 and [words[1] for words in commands] == ["-m"], "installed, and no more"


class TestSlurm:
    """With commands that stand in for Slurm's and accelerate's; the launchers' flags are those of the test above."""

    SRUN = 'echo "$1 $2" >>calls; shift 2; for node in 0 1; do SLURM_NODEID=$node "$@"; done'
    # Ends when scancel asks it to, with a status of its own
    STOPPED = 'trap "exit 3" USR1; echo $$ >pid; while true; do sleep 0.05; done'

    @pytest.fixture
    def submit(self, tmp_path):
        """Starts the script with a stand-in for srun. A Popen."""

        def run(srun):
            commands = {
                "scontrol": 'echo "scontrol $*" >>calls; [ "$1" = requeue ] || printf "node7\\nnode8\\n"',
                "scancel": 'echo "scancel $*" >>calls; kill -USR1 "$(cat pid)"',
                "srun": srun,
                "accelerate": 'echo "$PET_SIGNALS_TO_HANDLE" >signals; printf "%s " "$@" >>calls; echo >>calls',
            }
            for name, body in commands.items():
                (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
                (tmp_path / name).chmod(0o755)
            (tmp_path / "configs").symlink_to(ROOT / "configs")
            slurm = {"JOB_ID": "123456", "JOB_NUM_NODES": "2", "JOB_NODELIST": "node[7-8]", "GPUS_ON_NODE": "8"}
            slurm |= {"CPUS_ON_NODE": "96", "SUBMIT_DIR": str(tmp_path)}
            environment = os.environ | {f"SLURM_{key}": value for key, value in slurm.items()}
            environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "STRATEGY": "zero2"}
            script = [ROOT / "configs/slurm/nodes.sbatch", "--config", "configs/qwen2.5-7b.yaml", "--run_name", "a b"]
            return subprocess.Popen(["bash", *script], env=environment, cwd="/")

        return run

    def test_script_starts_a_launcher_on_each_node(self, submit, tmp_path):
        assert submit(self.SRUN).wait(PATIENCE) == 0
        assert (tmp_path / "calls").read_text().splitlines() == [
            "scontrol show hostnames node[7-8]",
            "--kill-on-bad-exit=1 --cpus-per-task=96",
            *[
                "launch --config_file configs/accelerate/zero2.yaml "
                f"--num_machines 2 --machine_rank {rank} --main_process_ip node7 --main_process_port 23456 "
                "--num_processes 16 train_countdown.py --resume_from_checkpoint auto "
                "--config configs/qwen2.5-7b.yaml --run_name a b "
                for rank in (0, 1)
            ],
        ]
        assert "SIGUSR1" in (tmp_path / "signals").read_text()

    def test_job_whose_time_is_up_is_asked_for_a_checkpoint_and_queued_again(self, submit, tmp_path):
        job = submit(self.STOPPED)
        while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text():
            time.sleep(0.02)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(PATIENCE) == 3
        calls = (tmp_path / "calls").read_text().splitlines()
        assert calls[1:] == ["scancel --signal=USR1 123456", "scontrol requeue 123456"]

    def test_job_that_fails_by_itself_is_not_queued_again(self, submit, tmp_path):
        assert submit("exit 4").wait(PATIENCE) == 4
        assert "requeue" not in (tmp_path / "calls").read_text()


@pytest.mark.parametrize("gpus", [1, 4])
@pytest.mark.parametrize("strategy", SEVERAL)
def test_as_many_processes_as_gpus_unless_told_otherwise(strategy, gpus, monkeypatch):
    started = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(launch, "check_cuda_p2p_ib_support", lambda: True)
    monkeypatch.setattr(torchrun, "run", started.append)
    for flags in ([], ["--num_processes", "3"]):
        command = [
            "--config_file",
            str(STRATEGIES / f"{strategy}.yaml"),
            "--main_process_port",
            "0",
            *flags,
            "script.py",
        ]
        launch.launch_command(launch.launch_command_parser().parse_args(command))
    assert [torchrun.determine_local_world_size(args.nproc_per_node) for args in started] == [gpus, 3]
