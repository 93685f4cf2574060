"""Is an implementation right? Its error against eager, held to what the dtype itself costs.

The yardstick is eager's own error: the same weights and the first images in fp64 against the case's
dtype. An implementation in that dtype may differ from eager by a small multiple of it, but never by CEILING: where
eager's own error alone leaves no room below that, rounding decides the tensor, and a better dtype must judge it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from vitbench.verify.outcome import Outcome, errors, is_output

#: Rounding that two correct orders of summation may differ by, even where eager's own error is luckily small.
FLOOR = 1e-5
#: The same of a gradient, whose sums over images and pixels cancel, the more the larger the batch.
GRADIENT_FLOOR = 1e-3
#: No error above it passes: a tensor that is zero or doubled is off by 1, one of the wrong sign by 2.
CEILING = 0.6
#: Of eager's own error: the output has its own and eager's. So has a gradient (together 1.4 where they are
#: independent), and it is judged at the case's batch, where sums cancel up to 1.7 times as much as on two images.
FACTOR, GRADIENT_FACTOR = 2.0, 3.0
#: A gradient that rounding decides still has a size, which noise up to that size changes by less.
COARSE = 4.0


def limit(own: float, dtype: torch.dtype) -> float:
    """The error that an output may have: twice eager's own, at least a last place of `dtype`, at most CEILING.

    An output of one or two numbers can be lucky in eager; no implementation is wrong for its last place.
    """
    return min(CEILING, max(FACTOR * own, FLOOR, torch.finfo(dtype).eps))


@dataclass(frozen=True)
class Yardstick:
    """Eager's own error in each tensor in a dtype, by the names of `errors`.

    `vanishing` are the parameters whose gradient in fp64 is next to zero, of which a low precision has only noise.
    """

    own: Mapping[str, float]
    vanishing: frozenset[str]
    dtype: torch.dtype
    factor: float

    @classmethod
    def of(cls, eager: Outcome, exact: Outcome, dtype: torch.dtype, factor: float = GRADIENT_FACTOR) -> Yardstick:
        """From one batch in `dtype` and in fp64; `factor`: of a gradient's own error, FACTOR for the batch itself."""
        floor = exact.floor()
        small = (n for n, g in exact.gradients.items() if g.norm().item() < floor * g.numel() ** 0.5)
        return cls(errors(eager, exact), frozenset(small), dtype, factor)

    def limits(self) -> dict[str, float]:
        """The error that each tensor may have; without those that rounding decides."""
        gradients = [error for name, error in self.own.items() if not is_output(name)]
        typical = statistics.median(gradients) if gradients else 0.0
        found = {}
        for name, error in self.own.items():
            if is_output(name):
                if FACTOR * error <= CEILING:
                    found[name] = limit(error, self.dtype)
            elif self.factor * error <= CEILING:
                allowed = self.factor * max(error, typical)
                found[name] = min(CEILING, max(allowed, GRADIENT_FLOOR, torch.finfo(self.dtype).eps))
        return found

    def undecided(self) -> list[str]:
        """The tensors of which this dtype cannot tell right from wrong, the worst first."""
        judged = self.limits()
        return sorted((name for name in self.own if name not in judged), key=lambda name: -self.own[name])


@dataclass(frozen=True)
class Verdict:
    """The tensor nearest to its limit (`limit` is None where rounding decides all), and in `wrong` what is wrong."""

    error: float
    limit: float | None
    wrong: str


def judge(got: Outcome, want: Outcome, yardstick: Yardstick, reference: str = "eager") -> Verdict:
    """Is an implementation's outcome right, as far as the dtype can tell?

    Gradients that rounding decides are held to their size, as far as they have one.
    """
    found, limits = errors(got, want), yardstick.limits()
    judged = [name for name in found if name in limits]
    if not judged:
        verdict = Verdict(max(found.values()), None, "")
    else:
        name = max(judged, key=lambda name: found[name] / limits[name])
        error, allowed = found[name], limits[name]
        told = f"differs from {reference} by {error:.3g} in {name}, more than {allowed:.3g}"
        verdict = Verdict(error, allowed, "" if error <= allowed else told)
    if not verdict.wrong and (name := _of_wrong_size(got, want, yardstick)):
        wrong = f"the gradient of {name} is not within a factor of {COARSE:g} of the size of {reference}'s"
        return Verdict(verdict.error, verdict.limit, wrong)
    return verdict


def _of_wrong_size(got: Outcome, want: Outcome, yardstick: Yardstick) -> str:
    floor = want.floor()
    for name in yardstick.undecided():
        vanishes = name in yardstick.vanishing
        if name not in want.gradients or (yardstick.own[name] > 1 and not vanishes):
            continue
        noise = floor * want.gradients[name].numel() ** 0.5
        ours = got.gradients[name].double().norm().item() if name in got.gradients else 0.0
        theirs = want.gradients[name].double().norm().item()
        if ours > COARSE * max(theirs, noise):
            return name
        if not vanishes and theirs > noise and ours * COARSE < theirs:
            return name
    return ""
