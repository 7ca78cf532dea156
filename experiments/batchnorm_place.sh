#!/usr/bin/env bash
# Claim:    BatchNorm before or after the activation: no difference in validation AUC is shown.
#           What is shown: after the ReLU, channels die (smallest running variance 3.5e-5, not 2.6e-3).
# Seeds:    10 pairs of runs, 20 epochs each, 4,744 of the 7,638 real tiles described in docs/results.md.
# Hardware: two CPU cores, one thread, fp32 (an AVX-512 CPU without bf16).
# Cost:     20 runs of about 25 to 40 s: 10 minutes.
# Figure:   AUC 0.7991 (before) and 0.8084 (after), difference -0.0092 [-0.0343, 0.0176], p = 0.418.
#           On an AMD EPYC, version 0.6.0: 0.8104 and 0.8115, on new tiles -0.0010 [-0.0311, 0.0290].
#           Another number of threads rounds differently: single runs move by 0.05 AUC, the verdict stays.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${DATA:-data} out=${OUT:-studies/bn}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
python kernels/compare.py --data "$data" --out "$out" --seeds 10
