"""Runs several configs over settings and seeds, and compares them in one table and one picture.

    python -m experiments.sweep experiments/configs/mnist_probmask.py \\
        experiments/configs/mnist_magnitude.py --densities=0.5,0.1 --seeds=0,1,2 --data_dir=...
    python -m experiments.sweep experiments/configs/mnist_hoyer.py \\
        --vary=regularize.strength=1e-4,2e-4 --vary=threshold.value=0.03,0.1 --data_dir=...

Without --densities and --vary each config is run over its own `grid`, if the file defines one: a
list of settings, each a dict such as {"density": 0.1} or {"threshold.value": 0.1}. Further flags go
to `experiments.run`. Each run has its own folder beneath --out; finished ones are not repeated, nor
are the first phases that runs have in common.
"""

import argparse
import itertools
import json
import statistics
from pathlib import Path

from experiments import figures, run


def main(arguments: list[str] | None = None) -> str:
    """Runs the command line; returns the table, which is also written to table.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--densities", help="such as 0.5,0.1")
    parser.add_argument("--vary", action="append", default=[], help="such as threshold.value=1,2")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", default="runs/sweep")
    flags, others = parser.parse_known_args(arguments)
    folder = Path(flags.out)

    rows = []
    for config in flags.configs:
        for settings in product(flags) or run.definitions(config).get("grid", [{}]):
            results = []
            for seed in map(int, flags.seeds.split(",")):
                label = "".join(f"-{name}{value}" for name, value in settings.items())
                out = folder / f"{Path(config).stem}{label}-seed{seed}"
                command = [config, *map(as_flag, settings.items()), f"--seed={seed}"]
                command += [f"--out={out}", f"--reuse={folder}", *others]
                results.append(finished(out, command) or run.main(command))
            rows.append(summary(Path(config).stem, settings, results))

    table = as_markdown(rows)
    (folder / "table.md").write_text(table)
    figures.sweep_picture(rows, folder / "picture.png")
    print(table)
    print(folder / "table.md")
    print(folder / "picture.png")
    return table


def finished(out: Path, command: list[str]) -> dict | None:
    """The result of a run, if it has finished with the settings that the command asks for."""
    if not (out / "result.json").exists():
        return None
    experiment = run.configured(run.parse(command))
    if (out / "settings.txt").read_text() != repr(experiment):
        return None
    return json.loads((out / "result.json").read_text())


def product(flags: argparse.Namespace) -> list[dict[str, str]]:
    """All combinations of the settings on the command line; empty if there are none."""
    choices = [f"density={flags.densities}"] if flags.densities else []
    names, values = [], []
    for choice in [*choices, *flags.vary]:
        name, _, texts = choice.partition("=")
        names.append(name)
        values.append(texts.split(","))
    if not names:
        return []
    return [dict(zip(names, each, strict=True)) for each in itertools.product(*values)]


def as_flag(setting: tuple[str, object]) -> str:
    """A setting as a flag of `experiments.run`."""
    name, value = setting
    return f"--set={name}={value}" if "." in name else f"--{name}={value}"


def summary(name: str, settings: dict, results: list[dict]) -> dict:
    """Mean and spread over seeds of one config with one choice of settings."""
    accuracies = [100 * result["accuracy"] for result in results]
    row = {
        "name": name,
        "settings": " ".join(f"{key}={value}" for key, value in settings.items()),
        "accuracies": accuracies,
        "mean": statistics.mean(accuracies),
        "spread": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        "kept": [result["kept"] for result in results],
        "density": statistics.mean(result["kept"] / result["weights"] for result in results),
        "seconds": statistics.median(result["seconds"] for result in results),
    }
    if all("heldout_accuracy" in result for result in results):
        row["heldout"] = statistics.mean(100 * result["heldout_accuracy"] for result in results)
    if all("structure" in result for result in results):
        row["macs"] = [result["structure"]["macs"] for result in results]
    return row


def as_markdown(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    columns = {
        "config": lambda row: row["name"],
        "settings": lambda row: row["settings"],
        "test accuracy, %": lambda row: f"{row['mean']:.2f} ± {row['spread']:.2f}",
        "each seed": lambda row: " / ".join(f"{each:.2f}" for each in row["accuracies"]),
        "held out, %": lambda row: f"{row['heldout']:.2f}" if "heldout" in row else "",
        "weights kept": lambda row: _each(row["kept"]),
        "MACs": lambda row: _each(row.get("macs", [])),
        "seconds": lambda row: f"{row['seconds']:.0f}",
    }
    cells = {title: [text(row) for row in rows] for title, text in columns.items()}
    shown = {title: column for title, column in cells.items() if any(column)}
    lines = [[*shown], ["---"] * len(shown), *zip(*shown.values(), strict=True)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _each(numbers: list[int]) -> str:
    same = len(set(numbers)) == 1
    return " / ".join(f"{number:,}" for number in (numbers[:1] if same else numbers))


if __name__ == "__main__":
    main()
