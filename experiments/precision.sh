#!/usr/bin/env bash
# Claim:    the notebook's protocol in fp32 and in bf16: no difference in validation AUC is shown.
# Seeds:    6 pairs of runs.
# Hardware: two CPU cores with bf16 arithmetic (AVX-512 or AMX).
# Cost:     12 runs of about 10 to 25 s: 4 minutes.
# Figure:   AUC 0.8160 (fp32) and 0.8190 (bf16), sign-flip p = 0.594.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${DATA:-data} out=${OUT:-studies/precision}
recipes=$(mktemp -d)
trap 'rm -rf "$recipes"' EXIT
for precision in fp32 bf16; do
  { cat kit/recipes/notebook.toml; echo "precision = \"$precision\""; } > "$recipes/$precision.toml"
done
python kernels/compare.py --data "$data" --out "$out" --seeds 6 \
    --arm "fp32=$recipes/fp32.toml" --arm "bf16=$recipes/bf16.toml"
