#!/usr/bin/env bash
# Set-up, data, training and report in one command:   bash train.sh [flags of train_countdown.py]
# Without an NVIDIA GPU it trains the embedded default, about six minutes on two CPU cores after installing. With one or
# more it trains the Qwen2.5 recipe that fits the first of them. `--config configs/X.yaml` chooses another recipe.
set -euo pipefail
cd "$(dirname "$0")"
source setup.sh "" # the empty argument keeps our own flags from it

gpus=$(nvidia-smi -L 2>/dev/null | wc -l || true)
if [ "$gpus" -eq 0 ]; then export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)}; fi # accelerate would leave one
strategy=single
if [ "$gpus" -gt 1 ]; then strategy=zero2; fi
exec accelerate launch --config_file "configs/accelerate/$strategy.yaml" --num_processes "$((gpus > 1 ? gpus : 1))" \
    train_countdown.py "$@"
