#!/usr/bin/env bash
# Claim:    of compact's ingredients only the number of epochs and the schedule go one way with each seed.
# Seeds:    3 runs per row, trained for twelve epochs (half of the recipe's then).
# Hardware: one CPU core with bf16 arithmetic per run.
# Cost:     7 to 13 minutes per run, 21 runs: 3 to 4 hours.
# Figure:   the table "Ingredients of compact" in docs/results.md.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${DATA:-data} slides=${SLIDES:-$data/slides.csv} runs=${OUT:-runs}
adam=(--optimizer adam --lr 3e-3)  # the recipe's until 0.7.0, whose ingredients these are
train() {  # NAME OPTIONS...: three seeds of twelve epochs
  for seed in 0 1 2; do
    python kernels/train.py --recipe compact --epochs 12 --data "$data" --slides "$slides" \
        --validate-on A --seed $seed --out "$runs/ingredient-$1-$seed" "${adam[@]}" "${@:2}"
  done
}
train nothing
train plain-filters --orientations 1 --widths 48 96 192 --views 8
train eight-epochs --epochs 8
train constant-rate --schedule constant --lr 1e-3
train no-weight-decay --weight-decay 0
train no-label-smoothing --label-smoothing 0
train d4-and-stains --augment stain
