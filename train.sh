#!/usr/bin/env bash
# Set-up, data, training and report in one command:   bash train.sh [flags of train_countdown.py]
# Without an NVIDIA GPU it trains the embedded default, in about four minutes on two CPU cores after installing. With a
# GPU it trains the Qwen2.5 recipe that fits the first one. `--config configs/X.yaml` chooses another recipe.
# `--resume_from_checkpoint auto` resumes a stopped run, or starts one: the same command for a job that is requeued.
# TinyZero's variables are read too: N_GPUS, BASE_MODEL, DATA_DIR, ROLLOUT_TP_SIZE, EXPERIMENT_NAME.
set -euo pipefail
cd "$(dirname "$0")"
source setup.sh

# Before the flags given: the later of two equal flags wins
if [ -n "${BASE_MODEL:-}" ]; then set -- --model_name_or_path "$BASE_MODEL" "$@"; fi
if [ -n "${DATA_DIR:-}" ]; then set -- --data_dir "$DATA_DIR" "$@"; fi
if [ -n "${ROLLOUT_TP_SIZE:-}" ]; then set -- --vllm_tensor_parallel_size "$ROLLOUT_TP_SIZE" "$@"; fi
if [ -n "${EXPERIMENT_NAME:-}" ]; then set -- --output_dir "outputs/$EXPERIMENT_NAME" "$@"; fi

gpus=${N_GPUS:-$(python -c 'import torch; print(torch.cuda.device_count())')} # of those in CUDA_VISIBLE_DEVICES
if [[ ! $gpus =~ ^[0-9]+$ ]]; then
    echo "train.sh: N_GPUS is $gpus, wanted a number: N_GPUS=2 bash train.sh" >&2
    exit 1
fi
if [ "$gpus" -gt 1 ]; then
    # Seconds for a checkpoint after the launcher has handed on Ctrl-C or SIGTERM
    export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}
    exec accelerate launch --config_file configs/accelerate/zero2.yaml --num_processes "$gpus" train_countdown.py "$@"
fi
if [ "$gpus" -eq 1 ]; then # one process must see one GPU
    export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}
    CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES%%,*}
fi
exec python train_countdown.py "$@" # no launcher needed
