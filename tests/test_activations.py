"""What a pass takes of memory is within 15 % of what torch allocates.   bash tests/run.sh tests/test_activations.py

Counted on the CPU, whose passes allocate what those of a GPU do but for the folding of the head's tiles, for which a
GPU has a kernel. On a GPU, tests/test_gpu.py compares the peak of a whole run.
"""

import json
from contextlib import nullcontext

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig
from trl.kernels import chunked_logprob
from trl.trainer import utils

from r1zero import schedule
from r1zero.estimate import activations
from r1zero.estimate.model_shapes import Shape
from r1zero.training import trainer as trimmed_trainer

SMALL = Shape(128, 4, 4, 2, 512, 512, True, 512)
CLOSE = 0.15


def peak_bytes(compute, path):
    """The most that a function allocates at a time on the CPU beside what was there, as torch's profiler counts it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        compute()
    profile.export_chrome_trace(str(path))
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        now += event["args"]["Bytes"]
        most = max(most, now)
    return most


@pytest.fixture
def gpu_head(monkeypatch):
    """TRL's head with folding and sums that allocate nothing, as its kernels for a GPU do not."""

    def fold(*arguments, **settings):
        pass

    def add(total, left, right):
        if total.dtype == left.dtype:
            total.addmm_(left, right)

    monkeypatch.setattr(chunked_logprob, "_forward_tile", fold)
    monkeypatch.setattr(chunked_logprob, "_backward_tile", fold)
    monkeypatch.setattr(chunked_logprob, "_addmm_fp32", add)


class Trial:
    """A small model, passes over it, and what they are expected to take."""

    def __init__(self, path, shape=SMALL, dtype="float32", autocast=True, checkpointing=True, lora=False, **sizes):
        self.path, self.autocast = path / "trace.json", autocast
        sequences, width = sizes.get("sequences", 4), sizes.get("width", 128)
        stream = 4 if dtype == "float32" else 2
        torch.manual_seed(0)
        self.model = AutoModelForCausalLM.from_config(shape.config(dtype=dtype)).train()
        layer = sum(parameter.numel() for parameter in self.model.model.layers[0].parameters())
        compute = 2 if autocast else stream
        self.run = activations.Pass(
            self.model.config, layer, sequences, sequences, width, compute, stream, autocast, lora, checkpointing
        )
        utils.add_fused_lm_head(self.model, outputs=("log_probs", "entropy"))
        self.decoder = self.model.model
        if lora:
            self.model = get_peft_model(self.model, ADAPTERS)
            self.model.enable_input_require_grads()
        if checkpointing:
            self.model.activation_checkpointing_enable()
        self.ids = torch.randint(0, shape.vocabulary, (sequences, width))
        self.mask = torch.ones_like(self.ids)
        self.mask[0, :5] = 0  # padding, without which attention has no mask
        self.labels = self.ids.masked_fill(self.mask == 0, -100)

    def forward(self, head):
        inputs = {"input_ids": self.ids, "attention_mask": self.mask}
        with torch.autocast("cpu", dtype=torch.bfloat16) if self.autocast else nullcontext():
            if head:
                return self.model(**inputs, labels=self.labels, fused_lm_head=True).log_probs
            return self.decoder(**inputs, use_cache=False).last_hidden_state

    def update(self, head):
        self.forward(head).sum().backward()  # so that the gradients are there
        return peak_bytes(lambda: self.forward(head).sum().backward(), self.path)

    def evaluation(self):
        with torch.no_grad():
            return peak_bytes(lambda: self.forward(False), self.path)

    def expected_update_of_layers(self):
        run = self.run
        casts, casts_of_layer = activations.cast_weights(run)
        one = activations.backward(run) + (activations.layer(run) if run.checkpointing else 0) + casts_of_layer
        return activations.kept_by_all(run) + max(casts, one)


ADAPTERS = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0)
TYPES = [
    pytest.param("float32", True, False, id="float32 under autocast"),
    pytest.param("bfloat16", False, False, id="bfloat16, as DeepSpeed has it"),
    pytest.param("float32", False, False, id="float32"),
    pytest.param("float32", True, True, id="LoRA on float32 under autocast"),
    pytest.param("bfloat16", True, True, id="LoRA on bfloat16 under autocast"),
]


class TestLayers:
    @pytest.mark.parametrize(("dtype", "autocast", "lora"), TYPES)
    def test_update_with_checkpointing(self, tmp_path, dtype, autocast, lora):
        trial = Trial(tmp_path, dtype=dtype, autocast=autocast, lora=lora)
        assert trial.expected_update_of_layers() == pytest.approx(trial.update(head=False), rel=CLOSE)

    @pytest.mark.parametrize(("dtype", "autocast", "lora"), TYPES[:4:3])
    def test_update_that_keeps_all_activations(self, tmp_path, dtype, autocast, lora):
        trial = Trial(tmp_path, dtype=dtype, autocast=autocast, lora=lora, checkpointing=False)
        assert trial.expected_update_of_layers() == pytest.approx(trial.update(head=False), rel=CLOSE)

    @pytest.mark.parametrize(("dtype", "autocast", "lora"), TYPES)
    def test_evaluation(self, tmp_path, dtype, autocast, lora, monkeypatch):
        trial = Trial(tmp_path, dtype=dtype, autocast=autocast, lora=lora)
        monkeypatch.setattr(activations, "head", lambda run: (0, 0))
        assert activations.evaluation(trial.run) == pytest.approx(trial.evaluation(), rel=CLOSE)


class TestHead:
    @pytest.mark.parametrize(
        ("moment", "shape", "settings"),
        [
            pytest.param(
                "gradient of the embedding",
                Shape(128, 2, 4, 2, 256, 40_000, True, 512),
                {},
                id="tied to the embedding",
            ),
            pytest.param(
                "backward pass of the head",
                Shape(128, 2, 4, 2, 256, 40_000, False, 512),
                {},
                id="apart from the embedding",
            ),
            pytest.param(
                "backward pass of the head",
                Shape(128, 2, 4, 2, 256, 40_000, True, 512),
                {"dtype": "bfloat16", "autocast": False},
                id="gradient in bfloat16",
            ),
            pytest.param(
                "end of the forward pass",
                Shape(256, 6, 4, 2, 1024, 128, True, 512),
                {"width": 16},
                id="autocast's cached weights",
            ),
            pytest.param(
                "backward pass of the last layer",
                Shape(64, 2, 4, 2, 10_000, 128, True, 512),
                {"sequences": 4, "width": 128},
                id="wide layers",
            ),
        ],
    )
    def test_update_has_its_peak_where_it_is_expected(self, tmp_path, gpu_head, moment, shape, settings):
        trial = Trial(tmp_path, shape, **{"sequences": 2, "width": 64} | settings)
        moments = activations.update_moments(trial.run)
        assert max(moments, key=moments.get) == moment
        assert moments[moment] == pytest.approx(trial.update(head=True), rel=CLOSE)

    def test_tiles_are_those_of_trl(self):
        assert activations.TILE_TOKENS == chunked_logprob.TOKEN_CHUNK_SIZE
        assert activations.TILE_ENTRIES == utils._CHUNKED_LOGPROB_CHUNK_SIZE


def same_completions(prompts, trainer):
    """Completions of prompts of 16 tokens that nobody has generated, in the place of TRL's generation."""
    completions = []
    for row in range(len(prompts)):
        length = trainer.args.max_completion_length - row % 3  # padding, without which attention has no mask
        completions.append([2] * length)
    return {
        "prompt_ids": [[1] * 16] * len(prompts),
        "completion_ids": completions,
        "logprobs": [[-1.0] * len(tokens) for tokens in completions],
    }


class TestTurns:
    """Batches that go through the model 16 sequences at a time, in the real trainer."""

    @pytest.fixture
    def trainer(self, tmp_path, tiny_model, gpu_head, monkeypatch):
        """The trainer of a small model, with small tiles of the head, so that it is the layers that decide."""
        monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")  # for rollout_func
        monkeypatch.setattr(utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", SMALL.vocabulary)
        monkeypatch.setattr(activations, "TILE_ENTRIES", SMALL.vocabulary)

        def build(dtype, autocast, lora, rows, shape=SMALL, width=128):
            torch.manual_seed(0)
            arguments = GRPOConfig(
                output_dir=str(tmp_path),
                use_cpu=True,
                bf16=autocast,
                optim="sgd",
                per_device_train_batch_size=rows,
                per_device_eval_batch_size=rows,
                gradient_accumulation_steps=2,
                num_generations=4,
                num_generations_eval=1,
                max_completion_length=width - 16,
                max_steps=1,
                save_strategy="no",
                disable_tqdm=True,
            )
            problems = Dataset.from_dict({"prompt": ["2 + 3 ="] * rows})
            return trimmed_trainer.TrimmedGRPOTrainer(
                model=AutoModelForCausalLM.from_config(shape.config(dtype=dtype)),
                reward_funcs=lambda completions, **columns: [float(row % 4) for row in range(len(completions))],
                args=arguments,
                train_dataset=problems,
                eval_dataset=problems,
                processing_class=AutoTokenizer.from_pretrained(tiny_model),
                peft_config=ADAPTERS if lora else None,
                rollout_func=same_completions,
            )

        return build

    def expected(self, trainer, dtype, autocast, lora, rows, shape=SMALL, width=128):
        """The Pass over so many sequences."""
        layer = 0
        for name, parameter in trainer.model.named_parameters():
            if ".layers.0." in name and "lora" not in name:
                layer += parameter.numel()
        stream = 4 if dtype == "float32" else 2
        compute = 2 if autocast else stream
        return activations.Pass(
            shape.config(), layer, rows, schedule.ROWS, width, compute, stream, autocast, lora, True
        )

    @pytest.mark.parametrize(("dtype", "autocast", "lora"), [TYPES[0], *TYPES[2:]])
    def test_evaluation_of_64_takes_no_more_than_16_at_a_time(self, tmp_path, trainer, dtype, autocast, lora):
        evaluated = trainer(dtype, autocast, lora, rows=64)
        run = self.expected(evaluated, dtype, autocast, lora, rows=64)
        found = peak_bytes(evaluated.evaluate, tmp_path / "trace.json")
        assert activations.evaluation(run) == pytest.approx(found, rel=CLOSE)
        run.rows = 64
        assert activations.evaluation(run) > 3 * found

    @pytest.mark.parametrize(
        "settings",
        [
            pytest.param(("float32", True, False, 32), id="float32 under autocast"),
            pytest.param(("bfloat16", True, True, 32), id="LoRA on bfloat16 under autocast"),
            pytest.param(
                ("float32", False, False, 64, Shape(256, 4, 4, 2, 1024, 512, True, 512), 32),
                id="layers larger than what they keep, whose gradients wait",
            ),
        ],
    )
    def test_update_takes_the_most_of_16_and_what_the_others_keep(self, tmp_path, trainer, settings):
        trained = trainer(*settings)
        run = self.expected(trained, *settings)
        gradients = 4 * sum(weight.numel() for weight in trained.model.parameters() if weight.requires_grad)
        found = peak_bytes(trained.train, tmp_path / "trace.json")  # the second micro-batch adds to the first's
        expected = gradients + max(activations.update_moments(run).values())
        assert expected == pytest.approx(found, rel=CLOSE)
