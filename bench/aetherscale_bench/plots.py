"""A plot for each result, as SVG that is the same for the same result."""

from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "aetherscale"

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from aetherscale_bench.figures import Result, Sample  # noqa: E402


def draw(result: Result, path: Path) -> None:
    """Every run as a point, the median as a bar; samples of one unit share an axis."""
    units = list(dict.fromkeys(sample.unit for sample in result.samples))
    heights = [sum(sample.unit == unit for sample in result.samples) for unit in units]
    height = 0.6 * len(units) + 0.36 * len(result.samples)
    figure, axes = plt.subplots(len(units), figsize=(8, height), squeeze=False, height_ratios=heights)
    for axis, unit in zip(axes[:, 0], units, strict=True):
        draw_unit(axis, unit, [sample for sample in result.samples if sample.unit == unit])
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None, "Description": result.digest})
    plt.close(figure)


def draw_unit(axis: Axes, unit: str, samples: list[Sample]) -> None:
    """Samples of one unit, from above."""
    for row, sample in enumerate(samples):
        axis.barh(row, sample.median, height=0.55, color="#9ecae1")
        axis.plot(sample.values, [row] * len(sample.values), "|", color="#08519c", markersize=9)
    axis.set_yticks(range(len(samples)), [sample.name for sample in samples], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.set_xlabel(unit, fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
