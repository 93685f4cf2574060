"""The simulation of the planned scale, small: real shards, real journals, the real merge."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from vitbench.bench.options import SweepOptions
from vitbench.cluster import folder as folders
from vitbench.cluster import shards, simulate
from vitbench.cluster.merge import merge
from vitbench.results import journal

OPTIONS = SweepOptions()


def test_failures_cost_time_and_no_case(tmp_path: Path) -> None:
    cases = simulate.some_cases(3000)
    divided = shards.divide(cases, 40, shards.seconds(OPTIONS))
    seconds = simulate.taken(cases, OPTIONS, seed=1)
    quiet = simulate.simulate(divided, seconds, 5, 0.0, seed=1)
    found = simulate.simulate(divided, seconds, 5, 0.1, seed=1)
    assert (quiet.failures, quiet.lost) == (0, 0.0)
    assert found.failures > 0 < found.lost
    assert quiet.least <= quiet.makespan < found.makespan
    for cases_of_one, tried in zip(divided, found.attempts, strict=True):
        # Each attempt goes on where the one before was.
        assert [tried[0][1], tried[-1][2]] == [0, len(cases_of_one)]
        assert all(one[2] == other[1] for one, other in itertools.pairwise(tried))
    run = folders.create(tmp_path / "run", divided, {case: n for n, case in enumerate(cases)}, OPTIONS, "slurm")
    simulate.write_journals(run, divided, found.attempts)
    merged = merge(run, tmp_path / "all.csv")
    assert (merged.missing, merged.replaced, merged.failed) == (0, 0, 0)
    assert [row.case for row in journal.read(tmp_path / "all.csv")] == [case.id for case in cases]


def test_a_single_node_takes_what_its_shards_take() -> None:
    cases = simulate.some_cases(60)
    divided = shards.divide(cases, 3, shards.seconds(OPTIONS))
    seconds = simulate.taken(cases, OPTIONS, seed=0)
    found = simulate.simulate(divided, seconds, 1, 0.0, seed=0)
    assert found.makespan == pytest.approx(sum(seconds.values()) + 3 * simulate.STARTING_S)


def test_the_command_says_when_a_bound_is_passed(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate.main(["--nodes", "20", "--cases", "20000"]) == 0
    assert "20 nodes" in capsys.readouterr().out
    assert simulate.main(["--nodes", "20", "--cases", "200", "--shards-per-node", "1", "--failures", "0.5"]) == 1
