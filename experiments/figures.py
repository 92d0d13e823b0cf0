"""The picture that a finished run leaves."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

import jaxprune as jp
from experiments.shrinkage import Leaf
from experiments.tasks import Metric


def run_picture(
    rows: list[dict], layers: list[jp.Layer], leaves: list[Leaf], metric: Metric, path: Path
) -> None:
    """Metric, sparsity and dying channels over time; density by layer, and widths that changed."""
    shrunk = any(leaf.before != leaf.after for leaf in leaves)
    count = 3 if shrunk else 2
    figure, axes = plt.subplots(1, count, figsize=(6 * count, 4.5), layout="constrained")
    _over_time(axes[0], rows, metric)
    density_by_layer(axes[1], layers)
    if shrunk:
        widths_by_layer(axes[2], leaves)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _over_time(axis, rows, metric):
    first, offset = 0.0, {}
    for row in rows:
        offset.setdefault(row["number"], first)
        first = offset[row["number"]] + row["epoch"]
    epochs = [offset[row["number"]] + row["epoch"] for row in rows]
    values = [row[metric.name] for row in rows]
    of_metric = axis if metric.fraction else axis.twinx()
    lines = of_metric.plot(epochs, values, "o-", ms=3, label=f"test {metric.name}")
    lines += axis.plot(epochs, [row["sparsity"] for row in rows], "s-C1", ms=3, label="sparsity")
    dying = [row.get("dying") or 0 for row in rows]
    if any(dying):
        count = axis.twinx()
        count.spines["right"].set_position(("outward", 0 if metric.fraction else 40))
        count.set(ylabel="dying channels", ylim=(0, 1.1 * max(dying)))
        lines += count.plot(epochs, dying, "^-C2", ms=3, label="dying channels")
    for number, start in offset.items():
        name = next(row["phase"] for row in rows if row["number"] == number)
        axis.axvline(start, color="grey", lw=0.8)
        axis.annotate(name, (start, 0.02), xycoords=("data", "axes fraction"), color="grey")
    axis.set(xlabel="epoch", ylim=(0, 1.02), title="Over time")
    axis.legend(handles=lines, loc="lower right")


def density_by_layer(axis, layers: list[jp.Layer]) -> None:
    """Draws one bar a layer on the axis, and the density of the whole network as a line."""
    names = [layer.path.removesuffix("/value").removesuffix("/kernel") for layer in layers]
    axis.barh(names, [layer.density for layer in layers])
    whole = sum(layer.kept for layer in layers) / sum(layer.size for layer in layers)
    axis.axvline(whole, color="black", ls="--", lw=1, label=f"whole network {whole:.2%}")
    axis.invert_yaxis()
    axis.set(xlabel="density", xscale="log", xlim=(None, 1), title="Density by layer")
    axis.tick_params(axis="y", labelsize=8 if len(names) < 20 else 5)
    axis.legend()


def widths_by_layer(axis, leaves: list[Leaf]) -> None:
    """Draws how many outputs each kernel had, and how many it has."""
    kernels = [leaf for leaf in leaves if len(leaf.before) > 1]
    names = [leaf.path.removesuffix("/value").removesuffix("/kernel") for leaf in kernels]
    axis.barh(names, [leaf.before[-1] for leaf in kernels], color="lightgrey", label="before")
    axis.barh(names, [leaf.after[-1] for leaf in kernels], height=0.5, label="after")
    axis.invert_yaxis()
    axis.set(xlabel="outputs", xscale="log", title="Width by layer")
    axis.tick_params(axis="y", labelsize=8 if len(names) < 20 else 5)
    axis.legend()


def sweep_picture(rows: list[dict], path: Path) -> None:
    """The metric against density, one line a config, with the spread over seeds.

    Of a fraction that should be large, what it lacks is shown: on a logarithmic axis 99% and 98%
    are far apart.
    """
    metric = rows[0]["metric"]
    lacking = metric.fraction and metric.higher_is_better
    names = [*dict.fromkeys(row["name"] for row in rows)]
    beside = len(names) > 8
    figure, axis = plt.subplots(figsize=(9.5 if beside else 7, 4.5), layout="constrained")
    axis.set_prop_cycle(plt.cycler(marker="os^") * plt.rcParams["axes.prop_cycle"])
    for name in names:
        own = sorted((row for row in rows if row["name"] == name), key=lambda row: row["density"])
        axis.errorbar(
            [row["density"] for row in own],
            [100 - row["mean"] if lacking else row["mean"] for row in own],
            [row["spread"] for row in own],
            capsize=3,
            label=name,
        )
    label = f"100 - test {metric.name}, %" if lacking else f"test {metric.name}"
    axis.set(xscale="log", yscale="log", xlabel="density", ylabel=label)
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter("{x:g}")
        side.set_minor_formatter("{x:g}")
    axis.legend(**({"loc": "upper left", "bbox_to_anchor": (1, 1)} if beside else {}))
    figure.savefig(path, dpi=120)
    plt.close(figure)
