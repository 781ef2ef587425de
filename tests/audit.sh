#!/usr/bin/env bash
# Looks the versions of configs/locks up among the known vulnerabilities. It needs a network, and so CI does not run it:
#   bash tests/audit.sh [--vulnerability-service osv]
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
python3 -m venv "$scratch"
"$scratch/bin/python" -m pip install -q pip-audit==2.10.1
# --strict: a package that cannot be looked up is no success. torch-cpu.txt has the versions of torch.txt
for lock in torch base gpu; do
    echo "configs/locks/$lock.txt"
    "$scratch/bin/pip-audit" --strict --disable-pip --require-hashes -r "configs/locks/$lock.txt" "$@"
done
