"""train_countdown.py for the tests of LoRA: the script as it is, and at the end the base weights that have moved."""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # as if the script itself had been started

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from r1zero.training import lora  # noqa: E402

keep_base_exact, models = lora.keep_base_exact, []
lora.keep_base_exact = lambda model: keep_base_exact(model) or models.append(model)
runpy.run_path(str(ROOT / "train_countdown.py"), run_name="__main__")

(model,) = models
saved, moved = load_file(Path(model.get_base_model().name_or_path) / "model.safetensors"), 0
for name, weight in model.named_parameters():
    name = name.removeprefix("base_model.model.").replace(".base_layer", "")
    moved += not weight.requires_grad and not torch.equal(weight, saved[name].to(weight.dtype))
print(f"\nbase weights that moved: {moved} of {len(saved)}")
