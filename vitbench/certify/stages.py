"""The seven stages of a certification, in their order."""

from __future__ import annotations

from vitbench.certify import correctness, doctor, kernels, memory, models, power, prediction
from vitbench.certify.stage import Stage
from vitbench.errors import InputError, nearest

#: Most valuable first: what cannot work here, what is wrong, then what is slow, then what it costs.
STAGES: tuple[Stage, ...] = (
    doctor.STAGE,
    correctness.STAGE,
    kernels.STAGE,
    models.STAGE,
    power.STAGE,
    memory.STAGE,
    prediction.STAGE,
)


def parse_stages(text: str) -> list[Stage]:
    """The stages named, commas between, in their own order; "all" is every stage.

    Raises: InputError naming the nearest.
    """
    known = {stage.name: stage for stage in STAGES}
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    for name in wanted or [text]:
        if name not in (*known, "all"):
            raise InputError(f"--stage {name!r} is unknown: {nearest(name, [*known, 'all'])}")
    return [stage for stage in STAGES if "all" in wanted or stage.name in wanted]
