"""Traces every model that a published figure is of: `python -m vitbench.predict.traced` writes traced.csv.xz.

Needs timm. What is traced is kept as by `vitbench predict`, so that a run that was stopped goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vitbench.models import foreign
from vitbench.predict import ask
from vitbench.predict.published import JUDGING, TRACED, Figure, figures
from vitbench.predict.setting import Answer, Setting
from vitbench.predict.table import Known, write


def settings(found: Sequence[Figure]) -> list[Setting]:
    """As the figures' models ran, with the classifiers that timm's weights have.

    Those of which figures are with merged branches also without, for models without.
    """
    config = foreign.load("timm").models.get_pretrained_cfg
    forms = {(f.model, f.resolution, f.layout, form) for f in found for form in {False, f.reparam}}
    return [
        Setting(f"timm:{model}", (size, size), layout, "amp-fp16", True, reparam, config(model).num_classes)
        for model, size, layout, reparam in sorted(forms)
    ]


def known(setting: Setting, answer: Answer) -> Known:
    (size, _), name = setting.resolution, setting.model.removeprefix("timm:")
    return Known(name, answer.family, size, setting.layout, setting.reparam, answer.parameters, answer.kernels)


def main() -> int:
    """1 where a model cannot be traced: one whose branches cannot be merged is none."""

    def told(done: int, total: int) -> None:
        print(f"\r{done} of {total} models", end="", file=sys.stderr, flush=True)

    asked = settings([*figures(), *figures(JUDGING)])
    answers = ask.ask_all(asked, told)
    write(TRACED, [known(s, a) for s, a in zip(asked, answers, strict=True) if not a.reason])
    failed = [(s, a) for s, a in zip(asked, answers, strict=True) if a.reason and not s.reparam]
    for setting, answer in failed:
        print(f"{setting.model} {setting.resolution[0]} {setting.layout}: {answer.reason}")
    print(f"wrote {TRACED}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
