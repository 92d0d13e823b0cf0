"""Runs several configs over densities and seeds, and compares them in one table and one picture.

    python -m experiments.sweep experiments/configs/mnist_probmask.py \\
        experiments/configs/mnist_magnitude.py --densities=0.5,0.1 --seeds=0,1,2 --data_dir=...

Further flags go to `experiments.run`. Each run has its own folder beneath --out; finished ones are
not repeated.
"""

import argparse
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
    parser.add_argument("--densities", required=True, help="such as 0.5,0.1")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", default="runs/sweep")
    flags, others = parser.parse_known_args(arguments)
    folder = Path(flags.out)

    rows = []
    for config in flags.configs:
        for density in map(float, flags.densities.split(",")):
            results = []
            for seed in map(int, flags.seeds.split(",")):
                out = folder / f"{Path(config).stem}-density{density:g}-seed{seed}"
                settings = [config, f"--density={density}", f"--seed={seed}", f"--out={out}"]
                finished = out / "result.json"
                if finished.exists():
                    results.append(json.loads(finished.read_text()))
                else:
                    results.append(run.main([*settings, *others]))
            rows.append(summary(Path(config).stem, density, results))

    table = as_markdown(rows)
    (folder / "table.md").write_text(table)
    figures.sweep_picture(rows, folder / "picture.png")
    print(table)
    print(folder / "table.md")
    print(folder / "picture.png")
    return table


def summary(name: str, density: float, results: list[dict]) -> dict:
    """Mean and spread over seeds of one config at one density."""
    accuracies = [100 * result["accuracy"] for result in results]
    return {
        "name": name,
        "density": density,
        "accuracies": accuracies,
        "mean": statistics.mean(accuracies),
        "spread": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        "kept": [result["kept"] for result in results],
        "seconds": statistics.median(result["seconds"] for result in results),
    }


def as_markdown(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| config | density | test accuracy, % | each seed | weights kept | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        each = " / ".join(f"{accuracy:.2f}" for accuracy in row["accuracies"])
        kept = " / ".join(f"{kept:,}" for kept in sorted(set(row["kept"])))
        lines.append(
            f"| {row['name']} | {row['density']:g} | {row['mean']:.2f} ± {row['spread']:.2f} "
            f"| {each} | {kept} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
