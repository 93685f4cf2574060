"""Traces every model that a published figure is of: `python -m vitbench.predict.traced` writes traced.csv.xz.

Needs timm. What is traced is kept as by `vitbench predict`, so that a run that was stopped goes on. With the argument
`compile` it writes traced-compiled.csv.xz instead, of a sample: of each family (a module of timm) those EACH models and
sizes whose names hash to the least, which nobody chose.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence

from vitbench.models import foreign
from vitbench.predict import ask
from vitbench.predict.published import COMPILED, JUDGING, TRACED, TRACED_COMPILED, Figure, figures
from vitbench.predict.setting import IMPLS, Answer, Setting
from vitbench.predict.table import Known, write

#: Models of each family that are traced compiled, which takes two traces each.
EACH = 3


def sample(found: Sequence[Figure]) -> list[Figure]:
    """The figures of at most EACH models and sizes of each family."""
    entry = foreign.load("timm").models.model_entrypoint
    families: dict[str, list[tuple[str, int]]] = {}
    for model, resolution in {(f.model, f.resolution) for f in found}:
        families.setdefault(entry(model).__module__, []).append((model, resolution))
    chosen = {one for members in families.values() for one in sorted(members, key=_hash)[:EACH]}
    return [f for f in found if (f.model, f.resolution) in chosen]


def _hash(one: tuple[str, int]) -> str:
    return hashlib.sha256(f"{one[0]} {one[1]}".encode()).hexdigest()


def settings(found: Sequence[Figure], impl: str = "eager") -> list[Setting]:
    """As the figures' models ran, with the classifiers that timm's weights have.

    Those of which figures are with merged branches also without, for models without.
    """
    config = foreign.load("timm").models.get_pretrained_cfg
    forms = {(f.model, f.resolution, f.layout, form) for f in found for form in {False, f.reparam}}
    return [
        Setting(f"timm:{model}", (size, size), layout, "amp-fp16", True, reparam, config(model).num_classes, impl)
        for model, size, layout, reparam in sorted(forms)
    ]


def known(setting: Setting, answer: Answer) -> Known:
    (size, _), name = setting.resolution, setting.model.removeprefix("timm:")
    return Known(name, answer.family, size, setting.layout, setting.reparam, answer.parameters, answer.kernels)


def main(impl: str = "eager") -> int:
    """1 where a model cannot be traced: one whose branches cannot be merged is none."""

    def told(done: int, total: int) -> None:
        print(f"\r{done} of {total} models", end="", file=sys.stderr, flush=True)

    if impl not in IMPLS:
        raise SystemExit(f"{impl!r} is none of {', '.join(IMPLS)}")
    if impl == "compile":
        path, asked = TRACED_COMPILED, settings(sample(figures(COMPILED)), impl)
    else:
        path, asked = TRACED, settings([*figures(), *figures(JUDGING)])
    answers = ask.ask_all(asked, told)
    write(path, [known(s, a) for s, a in zip(asked, answers, strict=True) if not a.reason])
    failed = [(s, a) for s, a in zip(asked, answers, strict=True) if a.reason and not s.reparam]
    for setting, answer in failed:
        print(f"{setting.model} {setting.resolution[0]} {setting.layout}: {answer.reason}")
    print(f"wrote {path}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
