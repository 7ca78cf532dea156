"""A competition kit for Kaggle's Histopathologic Cancer Detection."""

import os

__version__ = "0.9.1"

# No library that the kit brings may report anything to anyone. Each reads its switch when it is
# first imported, which is later than this.
os.environ |= {
    # onnxruntime 1.29 and newer tells Microsoft of every import, except under CI=true.
    "ORT_DISABLE_TELEMETRY": "1",
    # albumentations asks PyPI for its newest version.
    "NO_ALBUMENTATIONS_UPDATE": "1",
    # huggingface_hub describes the machine to its server with each download.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # MLflow counts what is called, and Weights & Biases sends its own errors.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
}

# PyTorch's threads spin while they wait for each other, by default for some milliseconds. On cores
# that other programs use, too, they keep away the very thread that they wait for, and a step takes
# several times as long. OpenMP reads this when PyTorch is first imported.
SPIN_COUNT = "10000"
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
