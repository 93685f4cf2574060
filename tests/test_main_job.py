"""The main job as a user runs it, in a process of its own: real models become rows that are right."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vitbench.results import journal

#: Per model, as published: parameters in 10^6 (catalog.csv; timm's convnext_atto) and GMACs at 224 px.
MODELS = {"vit_tiny_patch16_224": (5.717, 1.25), "cmt_s": (26.256, 4.03), "timm:convnext_atto": (3.7, 0.55)}


@pytest.mark.smoke
def test_three_real_models_are_measured(tmp_path: Path) -> None:
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    out = tmp_path / "rows.csv"
    command = [
        sys.executable,
        "-m",
        "vitbench",
        "bench",
        "--model",
        ",".join(MODELS),
        "--device",
        "cpu",
        "--batch",
        "1",
    ]
    command += ["--resolution", "224", "--impl", "eager", "--min-time", "0.1", "--max-time", "0.3", "--out", str(out)]
    own = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=own)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = journal.read(out)
    assert [(row.model, row.status, row.reason) for row in rows] == [(model, "ok", "") for model in MODELS]
    for row in rows:
        params, gmacs = MODELS[row.model]
        assert row.counts.params_m == pytest.approx(params, rel=1e-2)
        assert row.counts.gmacs == pytest.approx(gmacs, rel=1e-2)
        assert row.speed.img_per_s is not None
        assert row.speed.img_per_s > 0
        assert row.memory.predicted_mem_mib == pytest.approx(row.memory.peak_mem_mib, rel=1e-2)
