"""The check of a case before it is measured: in its own dtype, and in fp32 where that dtype cannot tell."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from vitbench.bench.build import Workload, autocast_dtype, set_precision
from vitbench.bench.plan import Case
from vitbench.errors import Unsupported
from vitbench.ops.implementations import ops_for
from vitbench.ops.names import COMPILED
from vitbench.results.row import Found, Verified
from vitbench.trace.precision import TORCH_DTYPES
from vitbench.verify import judge
from vitbench.verify.judge import Yardstick
from vitbench.verify.outcome import Outcome, run

#: Images on which eager's own error is measured, and on which fp32 judges.
IMAGES = 2
#: How torch says that it has no such operator for a dtype or a device.
_NO_OPERATOR = re.compile(r"not implemented for '|^Could not run 'aten::")


class Incorrect(Exception):
    """The implementation's result is wrong."""


class Unverifiable(Exception):
    """Rounding decides too much of the case, even in fp32, to tell whether the implementation is right."""


class Checker:
    """Holds implementations against eager; keeps eager's own errors and what fp32 has found right."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._yardsticks: dict[tuple[object, ...], Yardstick] = {}
        self._exact: tuple[tuple[object, ...], Outcome] | None = None
        self._right_in_fp32: set[tuple[object, ...]] = set()

    def check(
        self, case: Case, model: nn.Module, x: Tensor, found: Found, tell: Callable[[str], None] = lambda what: None
    ) -> float:
        """Fills in what was verified and the reason; returns the seconds of the implementation's first call.

        Args:
            x: [B, 3, H, W], the case's input.
            tell: is told when the first call begins, the first of those that warm up what is timed, and when it ends.

        Raises: Incorrect, Unverifiable; Unsupported where torch has no operator for the case's dtype on its device.
        """
        yardstick = self._yardstick(case)
        if case.impl != "eager" and (undecided := yardstick.undecided()):
            told = f"rounding in {case.dtype} decides {len(undecided)} of {len(yardstick.own)} tensors"
            if ops_for(case.impl).name == "eager":  # torch.compile alone: it would be compiled twice for torch's sake
                told += ": those are held to their size"
            else:
                self._check_in_fp32(case)
                told += ": verified in fp32 too"
            found.note(told)
        tell("compiling" if case.impl in COMPILED else "warming up")
        start = time.perf_counter()
        got = _run(case, model, x)
        seconds = time.perf_counter() - start
        tell("verifying")
        if not got.finite():
            raise Incorrect("the result holds infinities or NaN")
        if case.impl == "eager":
            found.verified.rel_err = max(yardstick.own.values())
            return seconds
        eager = self._workload.module(case, "eager", TORCH_DTYPES[case.dtype])
        verdict = judge.judge(got, _run(case, eager, x), yardstick)
        found.verified = Verified(verdict.error, verdict.limit)
        if verdict.wrong:
            raise Incorrect(verdict.wrong)
        return seconds

    def _check_in_fp32(self, case: Case) -> None:
        """Holds the implementation, uncompiled, to fp64, in fp32 and on two images, once for all batches and dtypes.

        Raises: Incorrect, Unverifiable.
        """
        key = (case.model, case.resolution, case.layout, case.mode, case.device, ops_for(case.impl).name)
        if key in self._right_in_fp32:
            return
        case_in_fp32 = replace(case, dtype="fp32", batch=IMAGES)
        set_precision(case_in_fp32)
        try:
            yardstick = replace(self._yardstick(case_in_fp32), factor=judge.FACTOR)
            model = self._workload.module(case_in_fp32, case.impl, torch.float32)
            got = run(model, self._workload.input(case_in_fp32, torch.float32), case.mode)
        finally:
            set_precision(case)
            if TORCH_DTYPES[case.dtype] != torch.float32:
                self._workload.drop_dtype(torch.float32)
        if not got.finite():
            raise Incorrect("in fp32 the result holds infinities or NaN")
        verdict = judge.judge(got, self._in_fp64(case), yardstick, "eager in fp64")
        undecided = yardstick.undecided()
        if verdict.wrong:
            raise Incorrect(f"in fp32 {verdict.wrong}")
        if 2 * len(undecided) > len(yardstick.own):
            raise Unverifiable(f"even in fp32 rounding decides {len(undecided)} of {len(yardstick.own)} tensors")
        self._right_in_fp32.add(key)
        if case.impl in COMPILED:
            torch._dynamo.reset()  # the case itself is compiled as if this had not been

    def _yardstick(self, case: Case) -> Yardstick:
        """Eager's error in the case's dtype against fp64, on two images."""
        key = (case.model, case.resolution, case.dtype, case.layout, case.mode, case.device)
        if key not in self._yardsticks:
            dtype = TORCH_DTYPES[case.dtype]
            exact = self._in_fp64(case)
            eager = self._workload.module(case, "eager", dtype)
            got = _run(case, eager, self._workload.input(case, dtype, IMAGES))
            self._yardsticks[key] = Yardstick.of(got, exact, autocast_dtype(case) or dtype)
        return self._yardsticks[key]

    def _in_fp64(self, case: Case) -> Outcome:
        """Eager in fp64 on two images; kept while only the dtype or the layout changes."""
        key = (case.model, case.resolution, case.mode, case.device)
        if self._exact is None or self._exact[0] != key:
            self._exact = None
            exact = self._workload.module(case, "eager", torch.float64)
            outcome = run(exact, self._workload.input(case, torch.float64, IMAGES), case.mode)
            self._workload.drop_dtype(torch.float64)
            self._exact = (key, outcome)
        return self._exact[1]


def _run(case: Case, model: nn.Module, x: Tensor) -> Outcome:
    """One pass in the case's dtype: the only place where what torch lacks is a limit of the case, not a fault."""
    try:
        return run(model, x, case.mode, autocast_dtype(case))
    except RuntimeError as error:
        if _NO_OPERATOR.search(str(error)):
            raise Unsupported(str(error)) from error
        raise


__all__ = ["IMAGES", "Checker", "Incorrect", "Unverifiable"]
