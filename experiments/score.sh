#!/usr/bin/env bash
# Claim:    none yet. It asks which changes of `compact` help on slides never seen, in the short form:
#           8 of 24 epochs. "narrow" has two thirds of the maps and half of the cost.
# Seeds:    2 for each of five groups of the slides `rest` (by colour), each held out in turn: ten
#           runs per arm, paired. Group A is left out altogether: it judges what was chosen.
# Hardware: two processes on two CPU cores with bf16 arithmetic, beside other work.
# Cost:     1 to 3 minutes of one core per run, 80 runs: 2 to 3 hours of one core.
# Figure:   not trained as a whole yet: docs/results.md, "Changes of compact in the short form", has
#           what was. SEEDS=1 is a first look, EPOCHS=24 the full form. A run that is there is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${DATA:-data} slides=${SLIDES:-$data/slides.csv} out=${OUT:-studies/score}
mkdir -p "$out"
[ -e "$out/groups.csv" ] || python experiments/group_by_colour.py "$data" "$slides" "$out/groups.csv"
export OMP_NUM_THREADS=1
python experiments/score.py --data "$data" --slides "$out/groups.csv" --out "$out" \
    --seeds "${SEEDS:-2}" --epochs "${EPOCHS:-8}" --devices "${DEVICES:-cpu:2}" \
    --arm "narrow=--widths 4 8 16" \
    --arm "muon=--widths 4 8 16 --optimizer muon" \
    --arm "recipe=" \
    --arm "crop=--crop 64 --size 64" \
    --arm "centre=--model experiments/leads.py:CentreMaximum" \
    --arm "streams=--model experiments/leads.py:TwoStreams" \
    --arm "stains=--widths 4 8 16 --stain-strength 1.5" \
    --arm "twice=--widths 4 8 16 --epochs $((2 * ${EPOCHS:-8}))"
