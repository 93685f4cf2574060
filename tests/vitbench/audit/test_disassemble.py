"""Several kernels in one call of nvdisasm are the same instructions and branches as each in a call of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vitbench.audit.run import audit
from vitbench.audit.sass import listing
from vitbench.audit.sass.graph import build_graph, target
from vitbench.audit.workers.disassemble import disassembled, run, tool

KERNELS = str(Path(__file__).with_name("disassembled_kernels.py"))


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_together_is_as_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arch: int) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    audit([KERNELS], archs=[arch], processes=1, cache=tmp_path / "cache", counted=False)
    files = sorted((tmp_path / "triton").rglob("*.cubin"))
    cubins = [path.read_bytes() for path in files]
    assert len(cubins) == 3
    together = disassembled(cubins)
    assert together == [disassembled([cubin])[0] for cubin in cubins]
    assert together == disassembled(cubins[::-1])[::-1]
    branches = 0
    for path, text in zip(files, together, strict=True):
        want = listing.parse(run(tool("nvdisasm"), "-c", "-ndf", "-hex", str(path)))
        found = listing.parse(text)
        for a, b in zip(want.instructions, found.instructions, strict=True):
            assert (a.address, a.guard, a.opcode, a.control) == (b.address, b.guard, b.opcode, b.control)
            assert _without_labels(a.text) == _without_labels(b.text)
            assert target(a, want) == target(b, found)
            branches += target(b, found) is not None
        graphs = build_graph(want), build_graph(found)
        assert graphs[0].blocks == graphs[1].blocks
        assert graphs[0].loops == graphs[1].loops
    assert branches > 10
    assert [path.stem for path, text in zip(files, together, strict=True) if "CALL" in text] == ["calling"]


def _without_labels(text: str) -> str:
    return re.sub(r"`\(.*?\)", "", text)
