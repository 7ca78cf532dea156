#!/usr/bin/env bash
# Claim:    chosen without group A, the recipe of 0.7.0 (Adam) scores 0.9496 AUC on it.
# Seeds:    2 per candidate on group rest-3 (by colour, inside the training side), 3 for the choice.
# Hardware: two CPU cores with bf16 arithmetic.
# Cost:     5 to 10 minutes per run, 11 runs: 80 minutes.
# Figure:   on rest-3: 24 epochs 0.9343, 0.9204; 12 epochs 0.9063, 0.8831; plain filters 24 epochs
#           0.9305, 0.9319; plain 12 epochs 0.9076, 0.9034. The choice by the mean, plain filters with
#           24 epochs, then on A: 0.9521, 0.9493, 0.9474, mean 0.9496.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${DATA:-data} slides=${SLIDES:-$data/slides.csv} runs=${OUT:-runs}
mkdir -p "$runs"
python experiments/group_by_colour.py "$data" "$slides" "$runs/nested.csv"
adam=(--optimizer adam --lr 3e-3)
plain=(--orientations 1 --widths 48 96 192 --views 8)
for seed in 0 1; do
  for epochs in 24 12; do
    common=(--recipe compact "${adam[@]}" --data "$data" --epochs $epochs --seed $seed --slides "$runs/nested.csv"
        --leave-out A --validate-on rest-3)
    python kernels/train.py "${common[@]}" --out "$runs/nested-$epochs-$seed"
    python kernels/train.py "${common[@]}" "${plain[@]}" --out "$runs/nested-plain-$epochs-$seed"
  done
done
for seed in 0 1 2; do
  python kernels/train.py --recipe compact "${adam[@]}" --data "$data" "${plain[@]}" --seed $seed \
      --slides "$slides" --validate-on A --out "$runs/chosen-$seed"
done
