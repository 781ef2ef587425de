"""setup.sh, train.sh and Slurm's script on machines that stand-ins play, and the locks. Nothing is installed."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import tomllib

import pytest
from conftest import PATIENCE, ROOT, each_case, wait_until, write_commands
from packaging.utils import canonicalize_name

LOCKS = ROOT / "configs" / "locks"
# Answers as the machine that the variables describe. Whatever installs or trains is written down; what installs fails
# if $FAILS, a regular expression, fits it.
MACHINE = """
name=${0##*/}
case "$name $*" in
*sys.version_info*) [[ " $FITTING " == *" $name "* ]] ;;
*--version) echo "Python 3.10.13" ;;
*sys.prefix*) echo "$FOLDER" ;;
*device_count*) echo "$CARDS" ;;
*is_available*) exit $((SEES == 0)) ;;
"python -c import torch"*) [ -n "$TORCH" ] ;;
*"-m venv"*)
    mkdir -p .venv/bin
    cp "$0" .venv/bin/python
    [ -z "$INTERRUPTED" ] && echo 'export VIRTUAL_ENV=$PWD/.venv' >.venv/bin/activate
    ;;
"nvidia-smi -L") exit $((CARDS == 0)) ;;
nvidia-smi*driver_version*) echo "$DRIVER" ;;
nvidia-smi*compute_cap*) echo "$CAPABILITY" ;;
nvidia-smi*) echo "| NVIDIA-SMI $DRIVER     Driver Version: $DRIVER     CUDA Version: $RUNS     |" ;;
uname*) echo "$SYSTEM" ;;
*"pip install"*)
    echo "$name $*" >>"$FOLDER/installed"
    ! [[ "$name $*" =~ $FAILS ]]
    ;;
*)
    printf '%q ' ${CUDA_VISIBLE_DEVICES:+GPU=$CUDA_VISIBLE_DEVICES} "$name" "$@" >"$FOLDER/started"
    exit "$STATUS"
    ;;
esac
"""
USUAL = {"FITTING": "python python3", "SYSTEM": "Linux", "FAILS": "^$", "STATUS": "0", "CARDS": "0", "SEES": "0"}
USUAL |= {"DRIVER": "580.82.07", "RUNS": "13.0", "CAPABILITY": "9.0"}


@pytest.fixture
def run(tmp_path):
    """Runs train.sh in a copy of the project; returns its status, what is installed and started, and its errors."""
    (tmp_path / "bin").mkdir()
    write_commands(
        tmp_path / "bin", **dict.fromkeys(("python", "python3", "nvidia_smi", "uname", "accelerate"), MACHINE)
    )
    for name in ("bash", "cat", "cksum", "cp", "dirname", "grep", "mkdir", "sed"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    for name in ("setup.sh", "train.sh", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(LOCKS, tmp_path / "configs" / "locks")

    def run(*flags, active=True, **variables):
        environment = USUAL | {"PATH": str(tmp_path / "bin"), "FOLDER": str(tmp_path)} | variables
        environment |= {"VIRTUAL_ENV": str(tmp_path)} if active else {}
        logs = [tmp_path / "installed", tmp_path / "started"]
        for log in logs:
            log.write_text("")
        command = [shutil.which("bash"), tmp_path / "train.sh", *flags]
        ended = subprocess.run(command, cwd="/", env=environment, timeout=PATIENCE, capture_output=True, text=True)
        installed, started = (log.read_text() for log in logs)
        return ended.returncode, locks(installed.splitlines()), shlex.split(started), ended.stderr

    return run


def locks(commands):
    """What commands install: each one's lock files, or the folder that it installs, as a word."""
    found = []
    for command in commands:
        names = re.findall(r"configs/locks/(\S*)\.txt", command)
        found.append("+".join(names) or command.split(" -e ")[1])
        assert bool(names) == ("--require-hashes" in command), "all but the project is checked by hash"
        assert "--no-deps" in command, "nothing comes along that no lock names"
    return found


def test_what_was_interrupted_is_completed_by_the_next_call(run):
    for fails, missing in (("base.txt", "configs/locks"), ("-e .$", "the project itself")):
        status, _, started, errors = run(FAILS=fails)
        assert status == 1 and started == [] and missing in errors
        assert "connect first, then start the same command again" in errors
    assert run()[:2] == (0, ["torch-cpu", "base", "."])
    assert run(active=False, INTERRUPTED="yes")[:2] == (1, []), "nothing is installed into the system's Python"
    assert run(active=False)[0] == 0


@each_case("machines.tsv")
def test_machine_gets_its_locks_once_and_one_command_or_one_line(run, case):
    variables, expected = json.loads(case["variables"]), case["expected"]
    flags = ["--config", "my recipes/x.yaml", "--run_name", "it's *"]
    status, installed, started, errors = run(*flags, active="without" not in case["kind"], STATUS="7", **variables)
    if case["kind"] == "starts":
        assert status == 7 and started == [*shlex.split(expected.format("train_countdown.py")), *flags]
    elif case["kind"] == "installs":
        assert (status, installed) == (7, expected.split()) and run(**variables)[:2] == (0, [])
    else:
        assert (status, installed, started) == (1, [], []) and re.search(expected, errors) and errors.count("\n") == 1


@pytest.fixture
def submit(tmp_path):
    """Starts Slurm's script with a stand-in for srun. A Popen."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    slurm = {"JOB_ID": "123456", "JOB_NUM_NODES": "2", "JOB_NODELIST": "node[7-8]", "GPUS_ON_NODE": "8"}
    slurm |= {"CPUS_ON_NODE": "96", "SUBMIT_DIR": str(tmp_path)}
    environment = {f"SLURM_{key}": value for key, value in slurm.items()}
    environment |= {"PATH": f"{tmp_path}:/usr/bin:/bin", "STRATEGY": "zero2"}

    def run(srun):
        write_commands(
            tmp_path,
            scontrol='echo "scontrol $*" >>calls; [ "$1" = requeue ] || printf "node7\\nnode8\\n"',
            scancel='echo "scancel $*" >>calls; kill -USR1 "$(cat pid)"',
            srun=srun,
            accelerate='printf "%s " "$PET_SIGNALS_TO_HANDLE" "$@" >>calls; echo >>calls',
        )
        script = [ROOT / "configs/slurm/nodes.sbatch", "--config", "configs/qwen2.5-7b.yaml", "--run_name", "a b"]
        return subprocess.Popen(["bash", *script], env=environment, cwd="/")

    return run


def test_script_starts_a_launcher_on_each_node(submit, tmp_path):
    srun = 'echo "$1 $2" >>calls; shift 2; for node in 0 1; do SLURM_NODEID=$node "$@"; done'
    assert submit(srun).wait(PATIENCE) == 0
    launch = (
        "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 launch --config_file configs/accelerate/zero2.yaml --num_machines 2 "
        "--machine_rank {} --main_process_ip node7 --main_process_port 23456 --num_processes 16 train_countdown.py "
        "--resume_from_checkpoint auto --config configs/qwen2.5-7b.yaml --run_name a b "
    )
    calls = ["scontrol show hostnames node[7-8]", "--kill-on-bad-exit=1 --cpus-per-task=96"]
    assert (tmp_path / "calls").read_text().splitlines() == [*calls, launch.format(0), launch.format(1)]


def test_job_whose_time_is_up_is_asked_for_a_checkpoint_and_queued_again_and_no_other(submit, tmp_path):
    job = submit('trap "exit 3" USR1; echo $$ >pid; while true; do sleep 0.05; done')
    wait_until(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text())
    job.send_signal(signal.SIGUSR1)
    assert job.wait(PATIENCE) == 3
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[1:] == ["scancel --signal=USR1 123456", "scontrol requeue 123456"]
    assert submit("exit 4").wait(PATIENCE) == 4
    assert (tmp_path / "calls").read_text().count("requeue") == 1


def test_locks_have_the_pins_of_the_project():
    """pip is told to add nothing by itself."""
    versions = {}
    for name in ("torch", "base", "gpu"):
        pins = re.findall(r"^([\w.-]+)==([^\s;]+)", (LOCKS / f"{name}.txt").read_text(), flags=re.MULTILINE)
        for package, version in pins:
            versions.setdefault(canonicalize_name(package), set()).add(version)
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, extras = pyproject["project"], pyproject["project"]["optional-dependencies"]
    pins = pyproject["build-system"]["requires"] + project["dependencies"]
    pins = dict(pin.split("==") for pin in pins + extras["gpu"] + extras["dev"])  # setup.sh leaves track out
    found = {name: versions[canonicalize_name(name)] for name in pins}
    assert found == {name: {version} for name, version in pins.items()}, "type python configs/locks/make.py"
    assert f"\ntorch=={pins['torch']}+cpu " in (LOCKS / "torch-cpu.txt").read_text()
    oldest, newest = re.search(r"\(3, (\d+)\) <= .* <= \(3, (\d+)\)", (ROOT / "setup.sh").read_text()).groups()
    assert project["requires-python"] == f">=3.{oldest},<3.{int(newest) + 1}"


def test_package_imports_no_script_above_it():
    """`python -m r1zero.report` works in any folder, where the scripts are not."""
    for path in (ROOT / "r1zero").rglob("*.py"):
        imports = re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), flags=re.MULTILINE)
        assert not {"rewards", "preprocess", "train_countdown"} & set(imports), path
