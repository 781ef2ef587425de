"""What the tests share: small models and data, and runs of the training script in this process or another."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's client reads it: no test waits for a network

import csv  # noqa: E402
import json  # noqa: E402
import re  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import subprocess  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import hypothesis  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import preprocess  # noqa: E402
from r1zero import ROOT  # noqa: E402
from r1zero import tiny_model as tiny  # noqa: E402
from r1zero.grading.sandbox import why_unavailable  # noqa: E402

collect_ignore = ["stand_in"]  # programs, which --doctest-modules would import
FIXTURES = Path(__file__).parent / "fixtures"
CASES = Path(__file__).parent / "cases"  # tables of inputs, expected outputs and reasons
# One thread is what accelerate launch leaves, and makes the same sums in every run; vLLM's cache takes 1 GiB on a CPU
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
PATIENCE = 600  # seconds after which something hangs, however busy the machine is

hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")
pytest.register_assert_rewrite("launches")


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


@pytest.fixture
def cached_model(tiny_model, tmp_path, monkeypatch):
    """The folder of the model somebody/something in the hub's cache as it lies on disk, without the hub."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "models--somebody--something"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return shutil.copytree(tiny_model, cache / "snapshots" / commit)


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
def launch_tiny(tmp_path_factory, tiny_model, tiny_data):
    """Trains the embedded default's model with a shipped strategy, in processes of their own: launches.launch."""
    import launches  # which imports from here

    def run(strategy, **settings):
        paths = {"model_name_or_path": tiny_model, "data_dir": tiny_data}
        return launches.launch(tmp_path_factory.mktemp(strategy), strategy, **paths | settings)

    return run


@pytest.fixture
def begin(tmp_path):
    """Starts a command, as launches.Started; whatever is left of it is ended with the test."""
    from launches import Started

    started = []

    def run(command):
        started.append(Started(command, tmp_path / f"console{len(started)}"))
        return started[-1]

    yield run
    for one in started:
        one.end()


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


def settings(*flags, config=ROOT / "configs" / "tiny_cpu.yaml", processes=1):
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
        train_here(ROOT / "configs" / "tiny_cpu.yaml", **SMALL | flags | paths)

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
