#!/usr/bin/env bash
# Set-up, data, training and report in one command:   bash train.sh [flags of train_countdown.py]
# Without an NVIDIA GPU it trains the embedded default, about six minutes on two CPU cores after installing. With one or
# more it trains the Qwen2.5 recipe that fits the first of them. `--config configs/X.yaml` chooses another recipe.
set -euo pipefail
cd "$(dirname "$0")"
source setup.sh "" # the empty argument keeps our own flags from it

gpus=$(nvidia-smi -L 2>/dev/null | wc -l || true)
if [ "$gpus" -gt 1 ]; then
    exec accelerate launch --config_file configs/accelerate/zero2.yaml --num_processes "$gpus" train_countdown.py "$@"
fi
exec python train_countdown.py "$@" # one process needs no launcher, and has all CPU threads
