"""The portable NVIDIA kernel in Triton's interpreter, against the definition in float64."""

import os
import subprocess
import sys
from pathlib import Path


def test_the_kernel_gives_the_definition():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.kernel_cases"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("0 cases off") and done.stdout.count("\n") > 15


def test_fused_layers_give_what_the_model_gives():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.body_cases"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("0 cases off")
