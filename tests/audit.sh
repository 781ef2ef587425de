#!/usr/bin/env bash
# Looks the versions of configs/locks up among the known vulnerabilities. It needs a network, and so CI does not run it:
#   bash tests/audit.sh [--vulnerability-service osv]
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
python3 -m venv "$scratch"
"$scratch/bin/python" -m pip install -q pip-audit==2.10.1
# What is known, and does not concern this project. vLLM from 0.31 on wants a transformers older than the pinned one.
exceptions=(
    PYSEC-2026-4344 CVE-2026-115911 # vLLM's server renders chat templates of requests: it answers 127.0.0.1 alone here
    PYSEC-2026-4349 CVE-2026-114051 # other requests to vLLM's server
    CVE-2026-114053                 # images in requests to vLLM's server
    CVE-2026-114049                 # vLLM with allowed_token_ids, which neither TRL nor this project sets
    CVE-2026-116180                 # vLLM with a KV connector, which neither of them sets
    PYSEC-2026-3447 CVE-2026-59890  # setuptools packs too many files on a Mac; vLLM wants less than 81
)
ignored=()
for id in "${exceptions[@]}"; do ignored+=(--ignore-vuln "$id"); done
# --strict: a package that cannot be looked up is no success. torch-cpu.txt has the versions of torch.txt
for lock in torch base gpu; do
    echo "configs/locks/$lock.txt"
    "$scratch/bin/pip-audit" --strict --disable-pip --require-hashes -r "configs/locks/$lock.txt" "${ignored[@]}" "$@"
done
