"""Which launches an audit takes up."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from vitbench.audit import command, registry, run
from vitbench.audit.job import job_of
from vitbench.audit.options import AuditOptions
from vitbench.errors import InputError

pytestmark = pytest.mark.fast

PATTERN = "*attention/c*/*"


def test_parts_are_disjoint_whole_and_keep_together_what_compiles_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "audit_launches", lambda planned, *_, **__: planned)
    parts = [run.audit(pattern=PATTERN, archs=[90], part=(k, 5), counted=False) for k in range(1, 6)]
    ids = [[launch.id for launch, _ in part] for part in parts]  # type: ignore[misc]
    planned = registry.launches(["vitkernels"], 90, PATTERN)
    assert Counter(name for names in ids for name in names) == Counter(launch.id for launch in planned)
    assert all(len(part) < len(planned) / 2 for part in ids)
    part_of = {name: k for k, names in enumerate(ids) for name in names}
    alike: dict[str, set[int]] = {}
    for launch in planned:
        alike.setdefault(job_of(launch, 90).likeness, set()).add(part_of[launch.id])
    assert len(alike) < len(planned)
    assert {len(found) for found in alike.values()} == {1}


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/4/8", "-1/4"])
def test_a_part_that_is_none(text: str) -> None:
    with pytest.raises(InputError, match="K/N"):
        command.parse_part(text)


def test_a_part_is_no_baseline() -> None:
    assert command.parse_part("3/8") == (3, 8)
    with pytest.raises(InputError, match="neither --accept nor --validate"):
        command.run(AuditOptions(part="3/8", accept=Path("results")))


def test_without_numba_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"simulates with numba, .*pip install 'vitbench\[audit\]'"):
        run.audit_launches([])
    assert run.audit_launches([], counted=False) == []
