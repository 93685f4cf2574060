"""What accuracy costs in pre-training: the figure of the ViT paper (arXiv:2010.11929, figure 5), where recipes are
published."""

from __future__ import annotations

from vitbench.report.figures import Figure, Section, base, colour, shape, short_numbers, tips
from vitbench.report.reading import Results


def section(results: Results) -> Section:
    """ExaFLOPs of pre-training, from our count of multiply-accumulates, against published top-1."""
    import altair as alt

    frame = results.frames["models"]
    frame = frame[frame["exaflops"].gt(0) & frame["top1"].gt(0)]
    frame = frame.assign(series=frame["family"] + ", " + frame["training_data"].str.split(",").str[0])
    x = alt.X("exaflops:Q", title="exaFLOPs of pre-training",
              axis=short_numbers(labelOverlap="greedy", labelSeparation=6),
              scale=alt.Scale(type="log", nice=False, padding=20))  # fmt: skip
    y = alt.Y("top1:Q", title="published ImageNet top-1, %", scale=alt.Scale(zero=False, padding=12))
    told = [
        "model:N",
        "top1:Q",
        "exaflops:Q",
        "epochs:Q",
        "images_m:Q",
        "training_data:N",
        "source:N",
    ]
    line = base().mark_line(strokeWidth=1, opacity=0.6).encode(x=x, y=y, color=colour())
    dots = base().mark_point().encode(x=x, y=y, color=colour(), shape=shape(), tooltip=tips(*told))
    figure = Figure(
        name="compute-to-accuracy",
        title="Accuracy against the compute of pre-training",
        caption="6 FLOPs for each multiply-accumulate, image and epoch; fine-tuning is not in it.",
        kind="models",
        chart=alt.layer(line, dots),
        rows=list(frame.index),
        series=list(frame["series"]),
        height=380,
    )
    missing = [
        "Models whose recipe (images and epochs) is not in vitbench/report/recipes.csv have no point, nor have those "
        "that were distilled or searched for: that compute is not counted."
    ]
    return Section(name="compute", title="Compute to accuracy", figures=[figure], missing=missing)


__all__ = ["section"]
