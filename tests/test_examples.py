"""The examples run, on data of their own, and reach what the documentation says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.needs("sklearn", "matplotlib", "tqdm", "array_api_strict", "torch", "jax")
@pytest.mark.parametrize("backend_name", ["numpy", "strict", "torch", "jax"])
def test_embed_digits(tmp_path: Path, backend_name: str) -> None:
    picture = tmp_path / "digits.png"
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / "embed_digits.py"), "--backend", backend_name, "--output",
         str(picture)],
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    found = re.search(r"([\d.]+) before training, ([\d.]+) after", run.stdout)
    assert found, run.stdout
    assert float(found[2]) >= 0.93
    assert f"Wrote the map of 450 held-out digits to {picture}" in run.stdout
    assert picture.stat().st_size > 10_000
