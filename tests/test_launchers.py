"""What train.sh, Slurm's script and the launchers' configs start; no training is started.

bash tests/run.sh tests/test_launchers.py
"""

import os
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
nvidia-smi*) exit 1 ;;
*sys.version_info* | *"import torch; assert"*) ;;
*sys.prefix*) echo "$FOLDER" ;;
*device_count*) echo "$CARDS" ;;
*"pip install"*) exit "$INSTALLS" ;;
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
    """Run train.sh as if torch saw so many GPUs; return the exit status and every command as a list of words."""
    for name in ("python", "accelerate", "nvidia-smi", "uv"):
        (tmp_path / name).write_text(STAND_IN)
        (tmp_path / name).chmod(0o755)

    def run(*flags, cards=0, status=0, **variables):
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "VIRTUAL_ENV": str(tmp_path)}
        environment |= {"FOLDER": str(tmp_path), "CARDS": str(cards), "STATUS": str(status), "INSTALLS": "0"}
        (tmp_path / "log").write_text("")
        command = ["bash", str(ROOT / "train.sh"), *flags]
        ended = subprocess.run(command, cwd="/", env=environment | variables, timeout=PATIENCE)
        return ended.returncode, [shlex.split(line) for line in (tmp_path / "log").read_text().splitlines()]

    return run


COMMANDS = [  # the GPUs that torch sees, the variables, and what is started
    (0, {"BASE_MODEL": "", "N_GPUS": ""}, ONE),
    (0, {"BASE_MODEL": "my model", "DATA_DIR": "data/x"}, f"{ONE} --data_dir data/x --model_name_or_path 'my model'"),
    (2, {"ROLLOUT_TP_SIZE": "2"}, f"{TWO} --vllm_tensor_parallel_size 2"),
    (0, {"EXPERIMENT_NAME": "a b"}, f"{ONE} --output_dir 'outputs/a b'"),
    (1, {}, f"GPU=0 {ONE}"),
    (8, {"N_GPUS": "2"}, TWO),
    (8, {"N_GPUS": "1"}, f"GPU=0 {ONE}"),
    (1, {"CUDA_VISIBLE_DEVICES": "3"}, f"GPU=3 {ONE}"),
    (2, {"CUDA_VISIBLE_DEVICES": "3,4", "N_GPUS": "1"}, f"GPU=3 {ONE}"),  # the first of those chosen
]


@pytest.mark.parametrize(("cards", "variables", "expected"), COMMANDS)
def test_variables_and_gpus_become_one_command_and_flags_follow(train_sh, cards, variables, expected):
    flags = ["--config", "my recipes/x.yaml", "--model_name_or_path", "other", "--run_name", "it's *"]
    status, commands = train_sh(*flags, cards=cards, **variables)
    assert status == 0 and commands[-1] == [*shlex.split(expected), *flags], "the last one counts"


def test_status_of_a_failed_installation_or_training_is_passed_on(train_sh):
    assert train_sh(INSTALLS="3") == (1, []), "nothing is trained"
    assert train_sh(N_GPUS="two") == (1, []), "no number"
    assert train_sh(status=7)[0] == 7


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
                f"launch --config_file configs/accelerate/zero2.yaml --num_machines 2 --machine_rank {rank} "
                "--main_process_ip node7 --main_process_port 23456 --num_processes 16 train_countdown.py "
                "--resume_from_checkpoint auto --config configs/qwen2.5-7b.yaml --run_name a b "
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


@pytest.mark.parametrize("strategy", SEVERAL)
def test_as_many_processes_as_gpus_unless_told_otherwise(strategy, monkeypatch):
    started = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(launch, "check_cuda_p2p_ib_support", lambda: True)
    monkeypatch.setattr(torchrun, "run", started.append)
    for flags in ([], ["--num_processes", "3"]):
        command = ["--config_file", str(STRATEGIES / f"{strategy}.yaml"), "--main_process_port", "0", *flags, "x.py"]
        launch.launch_command(launch.launch_command_parser().parse_args(command))
    assert [torchrun.determine_local_world_size(args.nproc_per_node) for args in started] == [4, 3]
