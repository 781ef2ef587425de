"""Statistics against formulas and brute force, and real evaluations of tiny models on the CPU.

bash tests/run.sh tests/test_evaluate.py
"""

import contextlib
import doctest
import itertools
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from accelerate import PartialState
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as token_models
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import evaluate
import preprocess
import rewards
import tiny_model as tiny
from behaviours import behaviours

ROOT = Path(__file__).parent.parent
FIXTURES = Path(__file__).parent / "fixtures"
SMALL = {"limit": 24, "batch_size": 8, "max_completion_length": 12}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The same sums in every process, and no accelerate state left for other modules."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    PartialState._reset_state()


def words(models, data, output_dir, **flags):
    flags = SMALL | {"data": data, "output_dir": output_dir} | flags
    return ["--model", *map(str, models), *(f"--{key}={value}" for key, value in flags.items() if value is not None)]


def run(models, data, output_dir, **flags):
    """Evaluates in this process; returns the metrics of each model."""
    evaluate.main(words(models, data, output_dir, **flags))
    return [json.loads(path.read_text()) for path in results(models, output_dir, "metrics.json")]


def results(models, output_dir, file):
    names = [f"{m.parent.name}-{m.name}" if m.name.startswith("checkpoint-") else m.name for m in models]
    return [output_dir / name / file for name in names]


def table(folder):
    return pq.read_table(folder / "completions.parquet")


@pytest.fixture
def problems(tiny_data):
    return tiny_data / "test.parquet"


class TestStatistics:
    def test_examples_in_the_docstrings_hold(self):
        assert doctest.testmod(evaluate) == (0, 1)

    def test_pass_at_k_of_a_worked_example(self):
        # 3 of 10 right: 1 - (7 * 6) / (10 * 9), 1 - (7 * 6 * 5 * 4 * 3) / (10 * 9 * 8 * 7 * 6)
        values = [evaluate.pass_at_k(10, 3, k) for k in (1, 2, 5, 8)]
        assert values == pytest.approx([0.3, 1 - 42 / 90, 1 - 2520 / 30240, 1.0])

    @pytest.mark.parametrize("n", [1, 2, 5, 8])
    def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(self, n):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert evaluate.pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))

    @pytest.mark.parametrize(
        ("right", "of", "low", "high"),
        [
            pytest.param(81, 263, 0.2553, 0.3662, id="Newcombe 1998, table I"),
            pytest.param(15, 148, 0.0624, 0.1605, id="Newcombe 1998, table I, a small share"),
            pytest.param(0, 20, 0.0, 0.1611, id="none right"),
            pytest.param(29, 29, 0.8830, 1.0, id="all right"),
        ],
    )
    def test_interval_of_single_completions_is_wilsons(self, right, of, low, high):
        found = evaluate.accuracy_interval(np.array([1] * right + [0] * (of - right)), 1)
        assert found == pytest.approx((low, high), abs=5e-5)

    def test_interval_of_several_completions_is_as_wide_as_the_problems_differ(self):
        rng = np.random.default_rng(0)
        right = rng.binomial(8, rng.beta(1, 1, 500))  # (problems,)
        resampled = rng.choice(right, (4000, 500)).mean(1) / 8
        low, high = np.quantile(resampled, [0.025, 0.975])
        assert evaluate.accuracy_interval(right, 8) == pytest.approx((low, high), abs=0.004)

    def test_interval_counts_completions_of_a_problem_once_if_they_all_agree_and_singly_if_they_do_not(self):
        agree, differ = np.array([4] * 30 + [0] * 70), np.array([1] * 80 + [2] * 20)
        assert evaluate.accuracy_interval(agree, 4) == pytest.approx(evaluate.accuracy_interval(agree // 4, 1))
        singly = np.repeat([1, 0], [120, 280])
        assert evaluate.accuracy_interval(differ, 4) == pytest.approx(evaluate.accuracy_interval(singly, 1))

    def test_interval_of_problems_without_variance_is_finite(self):
        low, high = evaluate.accuracy_interval(np.zeros(50, dtype=int), 16)
        assert low == 0 and high == pytest.approx(1.96**2 / (50 + 1.96**2), abs=1e-4)


@pytest.fixture
def saying(monkeypatch):
    """Puts an engine in place that gives the texts of say(prompt), a list of n, and counts its batches."""

    def put(say):
        batches = []

        @contextlib.contextmanager
        def engine(model, args, state):
            def generate(prompts, seeds):
                batches.append(len(prompts))
                texts = [text for prompt in prompts for text in say(model.tokenizer.decode(prompt))]
                assert len(texts) == len(seeds) == len(prompts) * args.n
                return [row + model.ends + [7] for row in model.tokenizer(texts)["input_ids"]]

            yield generate

        monkeypatch.setattr(evaluate, "transformers_engine", engine)
        return batches

    return put


def numbers_of(prompt):
    nums, target = prompt.split("the numbers [")[1].split("], create an equation that equals ")
    return list(map(int, nums.split(", "))), int(target.split(".")[0])


class TestMetrics:
    def test_all_metrics_are_those_of_what_was_said(self, saying, tiny_model, problems, tmp_path):
        """Right by search where the first number is odd; no answer where it is even."""

        def say(prompt):
            nums, target = numbers_of(prompt)
            tried = tiny.search(nums, target)
            if nums[0] % 2 and tried:
                return [tiny.write_trace(tried, solved=True)]
            return ["wait, 1+1 = 3"]

        saying(say)
        (metrics,) = run([tiny_model], problems, tmp_path, limit=None)
        rows = pq.read_table(problems).to_pylist()
        solved = [bool(row["nums"][0] % 2 and tiny.search(row["nums"], row["target"])) for row in rows]
        share = sum(solved) / len(rows)
        assert metrics["problems"] == 256 and 0.2 < share < 0.8
        assert metrics["accuracy"] == metrics["format_rate"] == metrics["pass@k"]["1"] == pytest.approx(share)
        assert metrics["reward"] == pytest.approx(share) and metrics["truncated"] == 0
        low, high = metrics["accuracy_interval"]
        assert low < share < high and high - low == pytest.approx(
            2 * 1.96 * math.sqrt(share * (1 - share) / 256), rel=0.02
        )

        found = table(tmp_path / "model").to_pylist()
        assert [row["row"] for row in found] == list(range(256))
        assert [row["correct"] for row in found] == solved
        lengths = [row["tokens"] for row in found]
        assert metrics["mean_completion_tokens"] == pytest.approx(np.mean(lengths))
        assert metrics["median_completion_tokens"] == np.median(lengths)

        cells = metrics["cells"]
        assert cells.keys() == {"3 numbers, + - alone", "3 numbers, needs * or /"}
        assert sum(cell["problems"] for cell in cells.values()) == 256
        assert sum(cell["problems"] * cell["accuracy"] for cell in cells.values()) == pytest.approx(sum(solved))
        assert cells["3 numbers, needs * or /"]["answers_that_multiply"] == 1.0
        assert 0 <= cells["3 numbers, + - alone"]["answers_that_multiply"] < 0.5

        counted = metrics["behaviours"]
        assert counted["restarts"] == {"all": pytest.approx(1 - share), "correct": 0.0, "incorrect": 1.0}
        assert counted["verification"]["correct"] == 1.0 and counted["verification"]["incorrect"] == 0.0
        assert counted["equations"]["incorrect"] == 1.0 and counted["true_equations"]["incorrect"] == 0.0
        assert counted["backtracking"]["correct"] == pytest.approx(
            np.mean([len(tiny.search(r["nums"], r["target"])) - 1 for r, s in zip(rows, solved, strict=True) if s])
        )

    def test_pass_at_k_is_over_the_completions_of_each_problem(self, saying, tiny_model, problems, tmp_path):
        """Of four completions of a problem, as many are right as its first number leaves by 4."""

        def say(prompt):
            nums, target = numbers_of(prompt)
            solution = tiny.search(nums, target)[-1][2] if tiny.search(nums, target) else "1"
            right = nums[0] % 4
            return [f"<answer>{solution}</answer>"] * right + ["<answer>1</answer>"] * (4 - right)

        saying(say)
        (metrics,) = run([tiny_model], problems, tmp_path, n=4, temperature=0.6, limit=50)
        found = table(tmp_path / "model").to_pylist()
        assert len(found) == 200 and len({row["row"] for row in found}) == 50
        by_problem = [found[i : i + 4] for i in range(0, 200, 4)]
        assert all(len({row["row"] for row in four}) == 1 for four in by_problem)
        right = [sum(row["correct"] for row in four) for four in by_problem]
        assert {0, 1, 2, 3} == set(right)
        for k in (1, 2, 4):
            expected = np.mean([evaluate.pass_at_k(4, c, k) for c in right])
            assert metrics["pass@k"][str(k)] == pytest.approx(expected)
        assert metrics["accuracy"] == pytest.approx(metrics["pass@k"]["1"])

    def test_every_task_is_scored_by_the_reward_of_its_columns(self, saying, long_model, tmp_path):
        preprocess.main(["multiply", "--local_dir", f"{tmp_path}/multiply", "--train_size", "8", "--test_size", "8"])
        source = ["--source", str(FIXTURES / "x_r1_750.jsonl")]
        preprocess.main(["x_r1_750", "--local_dir", f"{tmp_path}/maths", *source])
        preprocess.main(
            ["countdown", "--local_dir", f"{tmp_path}/countdown", "--train_size", "16", "--test_size", "4"]
        )
        preprocess.main(
            ["mixture", *(f"{tmp_path}/{t}" for t in ("countdown", "maths")), "--local_dir", f"{tmp_path}/mix"]
        )
        saying(lambda prompt: [r"<answer>1</answer> \boxed{42}"])
        columns = {
            "multiply": ("multiplication_reward", {"product", "stated_product", "product_verdict"}),
            "maths": ("boxed_math_reward", {"gold", "boxed", "boxed_verdict"}),
            "countdown": ("countdown_reward", {"target", "numbers", "equation", "verdict"}),
        }
        for task, (reward, verdicts) in columns.items():
            data = tmp_path / task / "train.parquet"
            (metrics,) = run([long_model], data, tmp_path / "out" / task)
            found = table(tmp_path / "out" / task / "long")
            rows = pq.read_table(data)
            given = {name: rows[name].to_pylist() for name in rows.column_names if name != "prompt"}
            expected = getattr(rewards, reward)(completions=found["completion"].to_pylist(), **given)
            assert found["reward"].to_pylist() == expected and metrics["format_rate"] == 1.0
            assert verdicts <= set(found.column_names)
            assert bool(metrics["cells"]) == (task == "countdown")
        (mixed,) = run([long_model], tmp_path / "mix" / "train.parquet", tmp_path / "out" / "mix")
        assert mixed["data_sources"].keys() == {"countdown", "x_r1_750"}
        verdicts = table(tmp_path / "out" / "mix" / "long")
        assert set(verdicts["verdict"].to_pylist()) == {"", "wrong"}
        assert {"", "wrong"} <= set(verdicts["boxed_verdict"].to_pylist())

    def test_parts_whose_columns_are_empty_join_others(self, tmp_path):
        for number, equation in enumerate((None, "1+2", None)):
            part = pa.table({"row": [number], "equation": [equation]})
            pq.write_table(part.replace_schema_metadata({"seconds": "0.5"}), tmp_path / f"{number}.parquet")
        seconds = evaluate.gather([tmp_path / f"{number}.parquet" for number in range(3)], tmp_path / "all.parquet")
        assert pq.read_table(tmp_path / "all.parquet").to_pydict() == {
            "row": [0, 1, 2],
            "equation": [None, "1+2", None],
        }
        assert seconds == 1.5


@pytest.fixture(scope="module")
def greedy(tmp_path_factory, tiny_model, tiny_data):
    """Output folder and metrics of a greedy evaluation."""
    folder = tmp_path_factory.mktemp("greedy")
    return folder, run([tiny_model], tiny_data / "test.parquet", folder)[0]


class TestRealEvaluation:
    def test_completions_are_scored_and_counted(self, greedy, tiny_data):
        folder, metrics = greedy
        found = table(folder / "model")
        rows = pq.read_table(tiny_data / "test.parquet").to_pylist()
        assert found.num_rows == metrics["problems"] == 24 and metrics["n"] == 1
        for row in found.to_pylist():
            problem = rows[row["row"]]
            assert row["prompt"] == problem["prompt"] and row["target"] == problem["target"]
            assert (
                row["reward"]
                == rewards.countdown_reward([row["completion"]], [problem["nums"]], [problem["target"]])[0]
            )
            assert 1 <= row["tokens"] <= 12 and (row["tokens"] == 12 or not row["truncated"])
            assert {name: row[name] for name in evaluate.BEHAVIOURS} == behaviours(row["completion"])
        assert metrics["tokens_per_second"] > 0
        assert not (folder / "model" / "parts").exists()

    def test_settings_versions_and_commit_are_beside_the_results(self, greedy):
        text = (greedy[0] / "model" / "config.yaml").read_text()
        config = yaml.safe_load(text)
        assert text.startswith("# commit ") and "transformers 5" in text
        assert config["temperature"] == 0 and config["reward_funcs"] == ["countdown_reward"] and config["n"] == 1

    def test_greedy_twice_is_the_same(self, greedy, tiny_model, problems, tmp_path):
        run([tiny_model], problems, tmp_path / "again")
        assert table(tmp_path / "again" / "model").equals(table(greedy[0] / "model"))

    def test_a_finished_evaluation_is_shown_again_without_a_model(
        self, greedy, tiny_model, problems, capsys, monkeypatch
    ):
        monkeypatch.setattr(evaluate, "load", None)
        assert run([tiny_model], problems, greedy[0]) == [greedy[1]]
        output = capsys.readouterr().out
        assert "24 problems, 1 completions each" in output and "accuracy (95 % interval)" in output
        assert "3 numbers, needs * or /" in output and "true equations" in output

    def test_the_seed_chooses_the_problems(self, tiny_model, problems, tmp_path, saying):
        saying(lambda prompt: [""])
        chosen = []
        for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
            run([tiny_model], problems, tmp_path / folder, seed=seed)
            chosen.append(table(tmp_path / folder / "model")["row"].to_pylist())
        assert chosen[0] == chosen[1] != chosen[2] and chosen[0] == sorted(set(chosen[0]))

    def test_several_completions_of_a_problem_differ_and_the_seed_decides_them(self, tiny_model, problems, tmp_path):
        flags = {"n": 4, "temperature": 0.6, "batch_size": None, "limit": 6}
        (metrics,) = run([tiny_model], problems, tmp_path / "first", **flags)
        assert metrics["n"] == 4 and metrics["pass@k"].keys() == {"1", "2", "4"}
        first = table(tmp_path / "first" / "model")
        texts = first["completion"].to_pylist()
        assert all(len(set(texts[i : i + 4])) == 4 for i in range(0, 24, 4))
        run([tiny_model], problems, tmp_path / "again", **flags)
        run([tiny_model], problems, tmp_path / "other", **flags, seed=1)
        assert first.equals(table(tmp_path / "again" / "model"))
        assert not set(texts) & set(table(tmp_path / "other" / "model")["completion"].to_pylist())


class TestModels:
    def test_a_lora_checkpoint_is_its_merged_model_and_stands_beside_its_base(
        self, tiny_model, problems, tmp_path, capsys
    ):
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(tiny_model)
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        adapted = get_peft_model(base, lora)
        checkpoint = tmp_path / "run" / "checkpoint-3"
        adapted.save_pretrained(checkpoint)
        adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "merged")
        models = [tiny_model, checkpoint, tmp_path / "merged"]
        metrics = run(models, problems, tmp_path / "out")
        base, adapted, merged = (path.parent for path in results(models, tmp_path / "out", "metrics.json"))
        assert adapted.name == "run-checkpoint-3" and len(metrics) == 3
        assert table(adapted).equals(table(merged)) and not table(adapted).equals(table(base))
        header = next(line for line in capsys.readouterr().out.splitlines() if "checkpoint-3" in line)
        assert "model" in header and "merged" in header, "one column each"

    def test_any_causal_model_is_scored_in_batches_padded_on_the_left(self, tmp_path):
        """GPT-2 with absolute positions and no padding token: what a prompt gets does not depend on its batch."""
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(token_models.BPE({c: i for i, c in enumerate([*alphabet, "<end>"])}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=len(tokenizer), n_positions=700, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3
        )
        config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
        tokenizer.save_pretrained(tmp_path / "gpt2")
        (tmp_path / "gpt2" / "generation_config.json").unlink()
        preprocess.main(["countdown", "--local_dir", f"{tmp_path}/data", "--train_size", "2", "--test_size", "8"])
        data = tmp_path / "data" / "test.parquet"
        assert len({len(prompt) for prompt in pq.read_table(data)["prompt"].to_pylist()}) > 2
        for size in (1, 8):
            run([tmp_path / "gpt2"], data, tmp_path / str(size), batch_size=size)
        one, eight = (table(tmp_path / str(size) / "gpt2")["completion"].to_pylist() for size in (1, 8))
        assert one == eight and len(set(one)) > 4

    def test_vllm_is_asked_for_the_same_completions(self, tiny_model, problems, tmp_path, monkeypatch):
        """vLLM 0.30's names and signatures, as far as they are used, over a transformers model in their place."""
        model = evaluate.read_model(str(tiny_model))
        model.longest = 9
        args = SimpleNamespace(n=2, temperature=0.0, max_completion_length=12, seed=0, dtype="float32")
        state = SimpleNamespace(process_index=0, local_process_index=0, num_processes=1, device=torch.device("cpu"))
        calls = []

        class SamplingParams:
            def __init__(self, *, temperature=1.0, max_tokens=16, seed=None, stop_token_ids=None):
                assert type(seed) is int and stop_token_ids == model.ends
                self.temperature, self.max_tokens = temperature, max_tokens

        class LLM:
            def __init__(self, model, *, dtype, seed, max_model_len, distributed_executor_backend, enable_sleep_mode):
                calls.append((dtype, max_model_len, distributed_executor_backend, enable_sleep_mode))
                self.model = AutoModelForCausalLM.from_pretrained(model)
                self.tokenizer = AutoTokenizer.from_pretrained(model)

            def generate(self, prompts, sampling_params, *, use_tqdm=True):
                assert len(prompts) == len(sampling_params)
                for prompt, params in zip(prompts, sampling_params, strict=True):
                    ids = torch.tensor([prompt["prompt_token_ids"]])
                    output = self.model.generate(ids, do_sample=False, max_new_tokens=params.max_tokens)
                    yield SimpleNamespace(
                        outputs=[SimpleNamespace(token_ids=tuple(output[0, ids.size(1) :].tolist()))]
                    )

            def sleep(self, level):
                calls.append(level)

        module = ModuleType("vllm")
        module.LLM, module.SamplingParams = LLM, SamplingParams
        monkeypatch.setitem(sys.modules, "vllm", module)
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.setenv(name, os.environ.get(name, ""))  # and back again after the test
        prompts = model.tokenizer(pq.read_table(problems)["prompt"].to_pylist()[:3])["input_ids"]
        with evaluate.vllm_engine(model, args, state) as generate:
            found = generate(prompts, list(range(6)))
        assert calls == [("float32", 21, "external_launcher", True), 2]
        assert [os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")] == ["0", "0", "1"]
        args.n = 1
        with evaluate.transformers_engine(model, args, state) as generate:
            expected = generate(prompts, [0, 0, 0])
        assert found == [row for row in expected for _ in range(2)]


# Eight parts that take long enough to be interrupted after two of them
SLOW = {"limit": 32, "batch_size": 4, "max_completion_length": 150, "temperature": 1.0, "n": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_model, tiny_data):
    """Folder of an evaluation by one process, without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    run([tiny_model], tiny_data / "test.parquet", folder, **SLOW)
    return folder / "model"


@pytest.fixture
def start(tiny_model, problems, tmp_path):
    """Starts the evaluation of SLOW in one process, or in several by accelerate; as its own process group."""

    def start(processes):
        launch = []
        if processes > 1:
            config = yaml.safe_load((ROOT / "configs" / "accelerate" / "ddp.yaml").read_text()) | {"use_cpu": True}
            (tmp_path / "ddp.yaml").write_text(yaml.safe_dump(config))
            with socket.socket() as server:
                server.bind(("127.0.0.1", 0))
                port = server.getsockname()[1]
            launch = ["-m", "accelerate.commands.launch", "--config_file", tmp_path / "ddp.yaml"]
            launch += ["--num_processes", processes, "--main_process_port", port]
        command = [sys.executable, *launch, "evaluate.py", *words([tiny_model], problems, tmp_path, **SLOW)]
        return subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return start


class TestProcesses:
    @pytest.mark.parametrize("processes", [1, 2])
    def test_interrupted_and_continued_is_as_if_uninterrupted(
        self, whole, start, processes, tiny_model, problems, tmp_path, monkeypatch
    ):
        process = start(processes)
        parts = tmp_path / "model" / "parts"
        while process.poll() is None and not (parts / "000001.parquet").exists():
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 1, output[-4000:]
        assert output.count("stopped; what is done stays: the same command goes on from there") == 1, output[-4000:]
        assert processes > 1 or "Traceback" not in output, "a launcher has its own"
        done = len(list(parts.glob("*.parquet")))
        assert 1 <= done < 8 and not (tmp_path / "model" / "completions.parquet").exists()

        scored, score = [], evaluate.score
        monkeypatch.setattr(evaluate, "score", lambda *batch: scored.append(batch) or score(*batch))
        run([tiny_model], problems, tmp_path, **SLOW)
        assert len(scored) == 8 - done, "nothing is done twice"
        one, other = (folder / "completions.parquet" for folder in (whole, tmp_path / "model"))
        assert one.read_bytes() == other.read_bytes()

    def test_two_processes_give_the_same_as_one(self, whole, start, tmp_path):
        process = start(2)
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output[-4000:]
        assert "transformers in float32 on 2 x cpu" in output and output.count("mean reward") == 1
        assert table(tmp_path / "model").equals(table(whole))
        two, one = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path / "model", whole))
        assert two | {"tokens_per_second": 0} == one | {"tokens_per_second": 0}

    def test_half_written_part_is_none(self, tiny_model, problems, tmp_path, saying):
        batches = saying(lambda prompt: [""])
        run([tiny_model], problems, tmp_path)
        (tmp_path / "model" / "metrics.json").unlink()
        (tmp_path / "model" / "parts").mkdir()
        (tmp_path / "model" / "parts" / "000001.parquet.part").write_bytes(b"PAR1")
        run([tiny_model], problems, tmp_path)
        assert batches == [8] * 6 and table(tmp_path / "model").num_rows == 24


class TestRefusals:
    @pytest.fixture
    def refused(self, tiny_model, problems, tmp_path, monkeypatch):
        """What is said, before any weight is loaded."""
        monkeypatch.setattr(evaluate, "load", None)

        def refused(models=(tiny_model,), data=problems, **flags):
            before = sorted((tmp_path / "out").rglob("*"))
            with pytest.raises(SystemExit) as stopped:
                evaluate.main(words(models, data, tmp_path / "out", **flags))
            assert isinstance(stopped.value.code, str), "exit status 1"
            assert sorted((tmp_path / "out").rglob("*")) == before
            head, *lines = stopped.value.code.split("\n  - ")
            assert head == "evaluate.py:" and len(lines) == 1 and "\n" not in lines[0]
            return lines[0]

        return refused

    def test_wrong_numbers(self, refused):
        assert "wanted --n, --max_completion_length" in refused(n=0)
        assert "wanted --n, --max_completion_length" in refused(limit=0)
        assert "wanted --n, --max_completion_length" in refused(batch_size=0)
        assert "wanted --n, --max_completion_length" in refused(max_completion_length=0)
        assert "--temperature 0 with --n 4: wanted above 0" in refused(n=4)
        assert "--temperature -1 with --n 1: wanted above 0" in refused(temperature=-1)

    def test_wrong_data(self, refused, tmp_path):
        assert "nowhere.parquet is no readable parquet file" in refused(data="nowhere.parquet")
        assert "is no readable parquet file" in refused(data=ROOT / "README.md")
        pq.write_table(pa.table({"prompt": ["a"], "gold": ["b"]}), tmp_path / "gold.parquet")
        assert "has the columns ['prompt', 'gold'] and lacks what a reward reads" in refused(
            data=tmp_path / "gold.parquet"
        )
        pq.write_table(pa.table({"product": ["a"]}), tmp_path / "product.parquet")
        assert "has the columns ['product'] and lacks prompt" in refused(data=tmp_path / "product.parquet")
        pq.write_table(pa.table({"prompt": ["a", "b"], "product": ["1", None]}), tmp_path / "none.parquet")
        assert "1 of 2 rows get no reward from multiplication_reward" in refused(data=tmp_path / "none.parquet")
        pq.write_table(pa.table({"prompt": pa.array([], "string"), "product": []}), tmp_path / "no.parquet")
        assert "and lacks rows; write it with" in refused(data=tmp_path / "no.parquet")

    def test_wrong_rewards(self, refused):
        assert "--reward_funcs names countdown; there are countdown_reward, mult" in refused(reward_funcs="countdown")
        assert "lacks solution" in refused(reward_funcs="boxed_math_reward")

    def test_wrong_models(self, refused, tiny_model, tmp_path):
        assert "model ./nowhere cannot be had (no weights in a folder of the name ./nowhere)" in refused(["./nowhere"])
        assert "model nobody/nothing cannot be had" in refused(["nobody/nothing"])
        (tmp_path / "empty").mkdir()
        assert "empty cannot be had (no weights in a folder" in refused([tmp_path / "empty"])
        (tmp_path / "empty" / "adapter_config.json").write_text('{"base_model_name_or_path": "./gone"}')
        assert "empty cannot be had (no weights in a folder" in refused([tmp_path / "empty"])
        copy = shutil.copytree(tiny_model, tmp_path / "other" / tiny_model.name)
        assert "would write to one folder" in refused([tiny_model, copy])
        assert "a prompt of 9 tokens and --max_completion_length 1024 exceed the context of" in refused(
            max_completion_length=1024
        )
        assert "--backend vllm needs a GPU" in refused(backend="vllm")

    def test_other_settings_in_the_same_folder(self, refused, saying, tiny_model, problems, tmp_path):
        saying(lambda prompt: [""])
        model = shutil.copytree(tiny_model, tmp_path / "model")
        run([model], problems, tmp_path / "out")
        changed = refused([model], limit=25, temperature=0.5)
        assert "out/model holds an evaluation with limit 24, now 25; temperature 0.0, now 0.5: remove it" in changed
        os.utime(model / "model.safetensors")  # as if it had been trained on
        assert "holds an evaluation with weights_written 20" in refused([model])
