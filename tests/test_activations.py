"""What a pass takes of memory is within 15 % of what torch allocates.   bash tests/run.sh tests/test_activations.py

Counted on the CPU, whose passes allocate what those of a GPU do but for the folding of the head's tiles, for which a
GPU has a kernel. On a GPU, tests/test_gpu.py compares the peak of a whole run.
"""

import json
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl.kernels import chunked_logprob
from trl.trainer import utils

from r1zero import activations
from r1zero.model_shapes import Shape

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
            self.model.config, layer, sequences, width, compute, stream, autocast, lora, checkpointing
        )
        utils.add_fused_lm_head(self.model, outputs=("log_probs", "entropy"))
        self.decoder = self.model.model
        if lora:
            self.model = get_peft_model(self.model, LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0))
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
