"""Threads that wait give up their core soon, unless the user says otherwise."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("given", "spins"),
    [
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "0"),
    ],
)
def test_openmp_spins_as_the_kit_or_the_user_says(given: dict[str, str], spins: str) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    shown = subprocess.run(
        [sys.executable, "-c", "import kit.training, torch"],
        env=environment | {"OMP_DISPLAY_ENV": "verbose"} | given,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    ).stderr
    assert f"GOMP_SPINCOUNT = '{spins}'" in shown
