"""What the tests share: small models and data, and runs of the training script in this process or another."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's client reads it: no test waits for a network

import contextlib  # noqa: E402
import csv  # noqa: E402
import json  # noqa: E402
import re  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402

import hypothesis  # noqa: E402
import psutil  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import preprocess  # noqa: E402
from r1zero import ROOT  # noqa: E402
from r1zero import tiny_model as tiny  # noqa: E402
from r1zero.grading.sandbox import why_unavailable  # noqa: E402

collect_ignore = ["stand_in"]  # programs, which --doctest-modules would import
CONFIGS = ROOT / "configs"
TINY = CONFIGS / "tiny_cpu.yaml"
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in ("tiny_model", "warm_start"))
FIXTURES = Path(__file__).parent / "fixtures"
CASES = Path(__file__).parent / "cases"  # tables of inputs, expected outputs and reasons
# One thread is what accelerate launch leaves, and makes the same sums in every run; vLLM's cache takes 1 GiB on a CPU
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
PATIENCE = 600  # seconds after which something hangs, however busy the machine is

hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


def rows_of(table):
    """The rows of a table in tests/cases, as dicts of texts."""
    with open(CASES / table, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def each_case(table, name="reason"):
    """Parametrises a test with `case`, a row of a table in tests/cases that is called after one of its columns."""
    rows = rows_of(table)
    return pytest.mark.parametrize("case", rows, ids=[row[name] for row in rows])


def wait_until(condition):
    """Waits until a condition holds, and returns what it gives. Only a hang meets the bound."""
    deadline = time.monotonic() + PATIENCE
    while not (holds := condition()):
        assert time.monotonic() < deadline, "it hangs"
        time.sleep(0.02)
    return holds


def write_commands(folder, **scripts):
    """Writes shell scripts that stand in for commands of the machine into a folder."""
    for name, script in scripts.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!/usr/bin/env bash\n{script}\n")
        path.chmod(0o755)


@pytest.fixture
def no_bubblewrap(monkeypatch):
    """A machine without the sandbox."""
    monkeypatch.setattr("r1zero.grading.sandbox.shutil.which", lambda command: None)
    monkeypatch.setattr("r1zero.grading.sandbox.SHARED", [])
    why_unavailable.cache_clear()
    yield
    why_unavailable.cache_clear()


@pytest.fixture(scope="session", autouse=True)
def same_everywhere():
    """Ctrl-C reaches what tests start, also from a shell's background, and sums are those of launched processes."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """Folder with train.parquet and test.parquet of the embedded default."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), steps=0)[1]


@pytest.fixture(scope="session")
def tinyzeros_data(tmp_path_factory, tiny_data):
    """The same as TinyZero writes it: each prompt is a list of one message, whose content is the text."""
    folder = tmp_path_factory.mktemp("tinyzeros")
    for split in ("train", "test"):
        table = pq.read_table(tiny_data / f"{split}.parquet")
        messages = [[{"content": prompt, "role": "user"}] for prompt in table["prompt"].to_pylist()]
        table = table.set_column(table.column_names.index("prompt"), "prompt", [messages])
        pq.write_table(table, folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_data):
    """Folder of the embedded default's model with random weights."""
    return tiny_data.parent / "model"


@pytest.fixture(scope="session")
def long_model(tmp_path_factory):
    """Folder of the embedded default's model with random weights and a context for every task's prompts."""
    folder = make_tiny_model(tmp_path_factory.mktemp("long"), steps=0, max_position_embeddings=2048)[0]
    return folder.rename(folder.with_name("long"))


@pytest.fixture(scope="session")
def data(tmp_path_factory, long_model):
    """Folder with the data of every task: countdown, multiply, x_r1_750, gsm8k, eurus, mixture."""
    folder = tmp_path_factory.mktemp("data")

    def write(task, *arguments):
        preprocess.main([task, "--local_dir", str(folder / task), *map(str, arguments)])

    write("countdown", "--train_size", 16, "--test_size", 4)
    write("multiply", "--train_size", 16, "--test_size", 4)
    write("x_r1_750", "--source", FIXTURES / "x_r1_750.jsonl")
    write("gsm8k", "--source", FIXTURES / "gsm8k.jsonl")
    write("eurus", "--source", FIXTURES / "eurus.jsonl", "--tokenizer", long_model)
    write("mixture", folder / "countdown", folder / "x_r1_750")
    return folder


def words(flags):
    """A dict of flags as the words of a command."""
    return [word for key, value in flags.items() for word in (f"--{key}", str(value))]


def make_tiny_model(folder, **flags):
    """Runs r1zero.tiny_model, with so many warm-up `steps`; returns the folders of the model and of its data."""
    tiny.main(words({"output_dir": folder / "model", "data_dir": folder / "data"} | flags))
    return folder / "model", folder / "data"


def parser():
    """The parser of train_countdown.py."""
    from trl import GRPOConfig, ModelConfig, TrlParser

    import train_countdown

    return TrlParser((train_countdown.ScriptArguments, GRPOConfig, ModelConfig), allow_abbrev=False)


def settings(*flags, config=TINY, processes=1):
    """Every setting of a recipe with flags, without a GPU: what the checks see. processes: None for no batch yet."""
    from r1zero.preflight import recipe
    from r1zero.preflight.machine import Machine, Strategy

    here = Machine(Strategy("one process", processes or 1, {"weights": 1, "gradients": 1, "optimizer": 1}))
    of_run = parser()
    _, values = recipe.resolve(of_run, recipe.read_flags(of_run, ["--config", str(config), *map(str, flags)]), here)
    if processes:
        recipe.fit(values, processes)
    return values


def train_here(config, *more, **flags):
    """A run of train_countdown.py in this process, which saves the ten seconds of starting one. more: words."""
    import train_countdown
    from r1zero.preflight import check as checks

    train_countdown.main(*checks.check(parser(), ["--config", str(config), *map(str, more), *words(flags)]))


@pytest.fixture(scope="session")
def train(tiny_model, tiny_data):
    """Trains the tiny recipe in this process, as small as SMALL says, in a folder."""

    def run(output_dir, model=tiny_model, data=tiny_data, **flags):
        paths = {"output_dir": output_dir, "model_name_or_path": model, "data_dir": data}
        train_here(TINY, **SMALL | flags | paths)

    return run


def reader_of(folder):
    """What the reader of completions is given on the page of a run."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def same_weights(folder, other):
    found, expected = load_file(folder / "model.safetensors"), load_file(other / "model.safetensors")
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def run_to_end(command, env=ENVIRONMENT, cwd=ROOT):
    """What a command prints, once it has ended well."""
    to = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "timeout": PATIENCE}
    run = subprocess.run(list(map(str, command)), cwd=cwd, env=env, **to)
    assert run.returncode == 0, run.stdout[-4000:]
    return run.stdout


# The tiny recipe, small: 8 completions of 2 prompts a step, 16 tokens each
SMALL = {
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "steps_per_generation": 1,
    "gradient_accumulation_steps": 1,
    "max_completion_length": 16,
    "per_device_eval_batch_size": 128,
    "logging_steps": 1,
}


# Commands in processes of their own


class Started:
    """A command in a process group of its own, with its console in a file. It finds ninja, for DeepSpeed."""

    def __init__(self, command, console):
        self.console = console
        environment = ENVIRONMENT | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        with console.open("w") as file:
            to = {"stdout": file, "stderr": subprocess.STDOUT, "start_new_session": True}
            self.process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment, **to)

    def text(self):
        return self.console.read_text(errors="replace")

    def await_(self, condition):
        """Waits for a condition while the run goes on."""

        def holds():
            done = condition()
            assert done or self.process.poll() is None, self.text()[-4000:]
            return done

        return wait_until(holds)

    def await_step(self, step):
        """Waits until the console has the line of that step, or of a later one."""
        found = re.compile(r"step +(\d+)/")
        self.await_(lambda: max(map(int, found.findall(self.text())), default=0) >= step)

    def workers(self):
        """The processes that train, without their launcher."""
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        return [member for member in family if any("train_countdown.py" in word for word in member.cmdline()[:3])]

    def wait(self):
        """The status, once all that was started has ended."""
        status = self.process.wait(timeout=PATIENCE)
        wait_until(self.has_ended)
        return status

    def has_ended(self):
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return True

    def end(self):
        """Ends the command with all that it has started itself."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


@pytest.fixture
def begin(tmp_path):
    """Starts a command, as Started; whatever is left of it is ended with the test."""
    started = []

    def run(command):
        started.append(Started(command, tmp_path / f"console{len(started)}"))
        return started[-1]

    yield run
    for one in started:
        one.end()


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def is_on_cpu(strategy):
    """Whether accelerate is told of the CPU: it would make DDP of FSDP there. See stand_in/train.py."""
    return strategy != "fsdp2"


def accelerate(folder, strategy, processes, port=None):
    """The words that launch so many processes on the CPU with a shipped strategy."""
    config = yaml.safe_load((CONFIGS / "accelerate" / f"{strategy}.yaml").read_text())
    path = folder / "accelerate.yaml"
    path.write_text(yaml.safe_dump(config | {"use_cpu": is_on_cpu(strategy)}))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", path]
    return [*command, "--num_processes", processes, "--main_process_port", port or free_port()]


# Two steps of 16 completions, 4 a group, in two micro-batches, whatever the number of processes
TWO_STEPS = {
    "num_generations": 4,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 2,
    "max_completion_length": 8,
    "max_steps": 2,
    "lr_scheduler_type": "constant",
    "reward_funcs": "tests/stand_in/letters.py:letters_reward",
    "logging_steps": 1,
    "eval_strategy": "no",
    "eval_on_start": False,
    "save_strategy": "no",
}


@dataclass
class Run:
    folder: Path
    console: str

    @property
    def history(self):
        """The logged entries of the training steps."""
        log = json.loads((self.folder / "trainer_state.json").read_text())["log_history"]
        return [entry for entry in log if "grad_norm" in entry]

    def grad_norms(self):
        return [entry["grad_norm"] for entry in self.history]

    def weights(self):
        return load_file(self.folder / "model.safetensors")

    def said(self, beginning):
        """What follows in each line of the console that begins so."""
        return re.findall(rf"^{re.escape(beginning)} (.*)$", self.console, flags=re.MULTILINE)


@pytest.fixture(scope="session")
def launch_tiny(tmp_path_factory, tiny_model, tiny_data):
    """Trains the embedded default's model with a shipped strategy on the CPU. Returns a Run.

    machines: launchers, which share the processes between them.
    """

    def run(strategy, processes=2, machines=1, **flags):
        folder, port, launchers = tmp_path_factory.mktemp(strategy), free_port(), []
        own = {"model_name_or_path": tiny_model, "data_dir": tiny_data, "output_dir": folder / "run"}
        own |= {"use_cpu": is_on_cpu(strategy), "per_device_train_batch_size": 8 // processes}
        script = ["tests/stand_in/train.py", "--config", "configs/tiny_cpu.yaml", *words(TWO_STEPS | own | flags)]
        for machine in range(machines):
            command = [*accelerate(folder, strategy, processes, port), "--main_process_ip", "127.0.0.1"]
            command += ["--num_machines", machines, "--machine_rank", machine, *script]
            launchers.append(Started(command, folder / f"console{machine}"))
        try:
            statuses = [launcher.process.wait(timeout=PATIENCE) for launcher in launchers]
        finally:
            for launcher in launchers:  # one that waits for another, which has failed
                launcher.end()
        consoles = [launcher.text() for launcher in launchers]
        assert statuses == [0] * machines, "\n".join(console[-4000:] for console in consoles)
        return Run(folder / "run", "".join(consoles))

    return run


def distance(weights, others):
    """Euclidean, over all parameters of `others`."""
    return sum((weights[name] - others[name]).square().sum() for name in others).sqrt()


def assert_same(run, reference, tiny_model):
    """Both steps' gradients, and the weights they lead to, are the reference's; measured: 1e-6 and 5e-6 apart."""
    initial, expected, found = load_file(tiny_model / "model.safetensors"), reference.weights(), run.weights()
    assert min(reference.grad_norms()) > 0.1 < distance(initial, expected), "there is something to compare"
    assert run.grad_norms() == pytest.approx(reference.grad_norms(), rel=1e-4)
    assert found.keys() - {"lm_head.weight"} == expected.keys()  # some strategies write the tied head out
    assert distance(found, expected) < 1e-3 * distance(initial, expected)
