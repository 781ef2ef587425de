#!/usr/bin/env bash
# Set-up, data, training and report in one command:   bash train.sh [flags of train_countdown.py]
# Without an NVIDIA GPU it trains the embedded default, about six minutes on two CPU cores after installing. With one or
# more it trains the Qwen2.5 recipe that fits the first of them. `--config configs/X.yaml` chooses another recipe.
# TinyZero's variables are read too: N_GPUS, BASE_MODEL, DATA_DIR, ROLLOUT_TP_SIZE, EXPERIMENT_NAME.
set -euo pipefail
cd "$(dirname "$0")"
source setup.sh "" # the empty argument keeps our own flags from it

flags=()
if [ -n "${BASE_MODEL:-}" ]; then flags+=(--model_name_or_path "$BASE_MODEL"); fi
if [ -n "${DATA_DIR:-}" ]; then flags+=(--data_dir "$DATA_DIR"); fi
if [ -n "${ROLLOUT_TP_SIZE:-}" ]; then flags+=(--vllm_tensor_parallel_size "$ROLLOUT_TP_SIZE"); fi
if [ -n "${EXPERIMENT_NAME:-}" ]; then flags+=(--run_name "$EXPERIMENT_NAME" --output_dir "outputs/$EXPERIMENT_NAME"); fi

gpus=${N_GPUS:-$(nvidia-smi -L 2>/dev/null | wc -l || true)}
if [ "$gpus" -gt 1 ]; then
    exec accelerate launch --config_file configs/accelerate/zero2.yaml --num_processes "$gpus" \
        train_countdown.py "${flags[@]}" "$@"
fi
exec python train_countdown.py "${flags[@]}" "$@" # one process needs no launcher, and has all CPU threads
