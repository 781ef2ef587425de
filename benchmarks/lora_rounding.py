"""What rounding leaves of a LoRA adapter: in the weights that vLLM samples from, and in the base after every push.

    python benchmarks/lora_rounding.py

A matrix of Qwen2.5-1.5B's hidden size with random weights, as a checkpoint in bfloat16 would hold them, and PEFT's own
merging, with and without r1zero/training/lora.py. AdamW trains the adapter at the recipes' rank and learning rate:
once on a gradient that is the same in every step, and once on one that is mostly noise. A run's lie somewhere between.
It takes a minute.
"""

import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from r1zero.training import lora  # noqa: E402

SIZE, RANK, RATE, WEIGHT = 1536, 32, 1e-5, 0.02  # WEIGHT: standard deviation of the base's entries
STEPS = (1, 10, 30, 50, 100, 200)
NOISE = {"one direction": 0, "mostly noise": 10}  # standard deviations of the noise, in those of the gradient


class Case:
    """A base in a type, pushed to an engine of another, with or without the copy."""

    def __init__(self, name, base, engine, kept):
        self.name, self.engine = name, engine
        torch.manual_seed(0)
        layer = torch.nn.Sequential(torch.nn.Linear(SIZE, SIZE, bias=False))
        torch.nn.init.normal_(layer[0].weight, std=WEIGHT)
        layer.to(torch.bfloat16).to(base)
        self.model = get_peft_model(layer, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["0"]))
        if kept:
            lora.keep_base_exact(self.model)
        self.layer = self.model.base_model.model[0]
        self.low, self.high = self.layer.lora_A["default"].weight, self.layer.lora_B["default"].weight
        self.before = self.layer.base_layer.weight.float().clone()
        self.optimizer = torch.optim.AdamW([self.low, self.high], lr=RATE, weight_decay=0)

    @torch.no_grad()
    def step(self, gradient):
        """An update and a push. gradient: of the merged weights. Returns the part that arrives, and the drift."""
        self.high.grad, self.low.grad = gradient @ self.low.T, self.high.T @ gradient
        self.optimizer.step()
        update = self.high @ self.low
        self.model.merge_adapter()
        arrived = self.layer.base_layer.weight.to(self.engine).float() - self.before.to(self.engine).float()
        self.model.unmerge_adapter()
        drift = self.layer.base_layer.weight.float() - self.before
        return ((arrived * update).sum() / update.square().sum()).item(), (drift.norm() / update.norm()).item()


def main():
    torch.set_num_threads(1)
    for kind, noise in NOISE.items():
        cases = [
            Case("bfloat16", torch.bfloat16, torch.bfloat16, kept=False),
            Case("bfloat16, kept", torch.bfloat16, torch.bfloat16, kept=True),
            Case("float32 to bfloat16", torch.float32, torch.bfloat16, kept=False),
            Case("float16, kept", torch.float16, torch.float16, kept=True),
        ]
        print(f"\ngradient: {kind}; part of the update in the engine, and drift of the base in adapter norms")
        print("step " + "".join(f"{case.name:>22}" for case in cases))
        generator = torch.Generator().manual_seed(1)
        signal = torch.randn(SIZE, SIZE, generator=generator)
        for step in range(1, max(STEPS) + 1):
            gradient = signal
            if noise:
                gradient = signal + noise * torch.randn(SIZE, SIZE, generator=generator)
            found = [case.step(gradient) for case in cases]
            if step in STEPS:
                print(f"{step:4} " + "".join(f"{part:14.1%} {drift:7.2g}" for part, drift in found), flush=True)


if __name__ == "__main__":
    main()
