"""Runs several configs over settings and seeds, and compares them in one table and one picture.

    python -m experiments.sweep experiments/configs/mnist/probmask.py \\
        experiments/configs/mnist/magnitude.py --sparsities=0.5,0.9 --seeds=0,1,2 --data_dir=...
    python -m experiments.sweep experiments/configs/mnist/hoyer.py \\
        --vary=regularize.strength=1e-4,2e-4 --vary=threshold.value=0.03,0.1 --data_dir=...

Without --sparsities and --vary each config is run over its own `grid`, if the file defines one: a
list of settings, each a dict such as {"sparsity": 0.9} or {"threshold.value": 0.1}. Further flags
go to `experiments.run`; they may not set what varies. Each run has its own folder beneath --out;
finished ones are not repeated, nor are the first phases that runs have in common, nor is what takes
long to compile.
"""

import argparse
import itertools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments import figures, processes, run
from experiments.experiment import config_name, definitions
from experiments.tasks import Metric
from experiments.usage import Parser, UsageError, exit_with_one_line

_ELSEWHERE = {
    "seed": "seeds of a sweep are given by --seeds=0,1,2",
    "out": "a sweep has one --out for all runs",
    "compile_for": "steps are compiled by experiments.run, of one config",
}


class Cell(NamedTuple):
    """One config with one choice of settings: a folder and a command for each seed."""

    name: str
    settings: dict[str, Any]
    runs: list[tuple[Path, list[str]]]


def main(arguments: Sequence[str] | None = None) -> str:
    """Runs the command line; returns the table, which is also written to table.md."""
    flags, others = parse(arguments)
    if arguments is None:  # a command of its own, which has not used JAX yet
        of_run = run.parse([flags.configs[0], *others])
        processes.start(of_run.coordinator, of_run.processes, of_run.process)
    folder = Path(flags.out)
    keep_compiled(folder.absolute() / "compiled")
    cells = planned(flags, others)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: {error}") from error
    rows = [
        summary(
            cell.name,
            cell.settings,
            [finished(out, command) or run.main(command) for out, command in cell.runs],
        )
        for cell in cells
    ]
    table = as_markdown(rows)
    processes.write(folder / "table.md", table)
    if processes.is_main():
        figures.sweep_picture(rows, folder / "picture.png")
    print(table)
    print(folder / "table.md")
    print(folder / "picture.png")
    return table


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The command line, and what of it is for `experiments.run`."""
    parser = Parser(__doc__)
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--sparsities", help="such as 0.5,0.9")
    parser.add_argument("--vary", action="append", default=[], help="such as threshold.value=1,2")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", default="runs/sweep")
    flags, others = parser.parse_known_args(arguments)
    of_run = run.parser()
    _, unknown = of_run.parse_known_args([flags.configs[0], *others])
    of_run.check_known(unknown, parser.flags)
    return flags, others


def keep_compiled(folder: Path) -> None:
    """Keeps compiled programs there, unless the environment says where: seeds share them."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(folder))


def planned(flags: argparse.Namespace, others: list[str]) -> list[Cell]:
    """What to run, each command checked before the first one is run."""
    seeds = seeds_of(flags.seeds)
    names = [config_name(config) for config in flags.configs]
    if len(set(names)) < len(names):
        raise UsageError(f"configs must have different names, got {', '.join(names)}")
    folder, varied = Path(flags.out), product(flags)
    grids = {config: varied or own_grid(config) for config in flags.configs}
    cells = []
    for name, (config, grid) in zip(names, grids.items(), strict=True):
        source = "the command line" if varied else f"the grid of {config}"
        check_apart(grid, source, passed_on(config, others))
        for settings in grid:
            label = "".join(f"-{key}{value}" for key, value in settings.items())
            common = [config, f"--reuse={folder}", *map(as_flag, settings.items()), *others]
            runs = []
            for seed in seeds:
                out = folder / f"{name}{label}-seed{seed}".replace("/", "-")
                runs.append((out, [*common, f"--seed={seed}", f"--out={out}"]))
            run.configured(run.parse(runs[0][1]))
            cells.append(Cell(name, settings, runs))
    return cells


def seeds_of(text: str) -> list[int]:
    """The seeds on the command line."""
    if not all(seed.isdecimal() for seed in text.split(",")):
        raise UsageError(f"--seeds needs numbers such as 0,1,2, got {text!r}")
    seeds = [*map(int, text.split(","))]
    check_once("--seeds", seeds)
    return seeds


def check_once(what: str, values: Sequence[Any]) -> None:
    """Raises a UsageError if a value is there twice: it would be run as if it were two."""
    for value in values:
        if values.count(value) > 1:
            raise UsageError(f"{what} has {value} more than once")


def passed_on(config: str, others: list[str]) -> set[str]:
    """The settings that flags for `experiments.run` fix in all runs."""
    own, given = run.parser(), run.parse([config, *others])
    flags = {name for name, value in vars(given).items() if value != own.get_default(name)}
    return flags | {setting.partition("=")[0] for setting in given.set}


def check_apart(grid: list[dict[str, Any]], source: str, fixed: set[str]) -> None:
    """Raises a UsageError if rows would be labelled with what they aren't run with."""
    varied = dict.fromkeys(name for settings in grid for name in settings)
    for name, reason in _ELSEWHERE.items():
        if name in varied or name in fixed:
            raise UsageError(f"{name}: {reason}")
    of_phases = {name for name in fixed if name.endswith(".epochs")}
    for name in varied:
        if name in fixed or (name == "epochs" and of_phases):
            raise UsageError(
                f"{name} is fixed by a flag and varied by {source}: leave the flag away, or say "
                "by --vary or --sparsities what varies"
            )


def own_grid(config: str) -> list[dict[str, Any]]:
    """The settings that a config file lists."""
    grid = definitions(config).get("grid", [{}])
    if not isinstance(grid, list) or not all(isinstance(each, dict) for each in grid):
        raise UsageError(f"`grid` of {config} must be a list of dicts, got {grid!r}")
    return grid


def product(flags: argparse.Namespace) -> list[dict[str, str]]:
    """All combinations of the settings on the command line; empty if there are none."""
    if flags.sparsities == "":
        raise UsageError("--sparsities needs numbers such as 0.5,0.9, got none")
    choices = [f"sparsity={flags.sparsities}"] if flags.sparsities else []
    names, values = [], []
    for choice in [*choices, *flags.vary]:
        name, _, texts = choice.partition("=")
        if not name or not texts:
            raise UsageError(f"--vary needs setting=value,value,..., got {choice!r}")
        names.append(name)
        values.append(texts.split(","))
        check_once(name, values[-1])
    check_once("what varies", names)
    if not names:
        return []
    return [dict(zip(names, each, strict=True)) for each in itertools.product(*values)]


def as_flag(setting: tuple[str, object]) -> str:
    """A setting as a flag of `experiments.run`."""
    name, value = setting
    return f"--set={name}={value}" if "." in name else f"--{name}={value}"


def finished(out: Path, command: list[str]) -> dict | None:
    """The result of a run, if it has finished with the settings that the command asks for."""
    if not (out / "result.json").exists():
        return None
    experiment = run.configured(run.parse(command))
    if (out / "settings.txt").read_text() != repr(experiment):
        return None
    return json.loads((out / "result.json").read_text())


def summary(name: str, settings: dict, results: list[dict]) -> dict:
    """Mean and spread over seeds of one config with one choice of settings."""
    metric = Metric(**results[0]["metric"])
    scale = 100 if metric.fraction else 1
    values = [scale * result[metric.name] for result in results]
    row = {
        "name": name,
        "settings": " ".join(f"{key}={value}" for key, value in settings.items()),
        "metric": metric,
        "values": values,
        "mean": statistics.mean(values),
        "spread": statistics.stdev(values) if len(values) > 1 else 0.0,
        "kept": [result["kept"] for result in results],
        "density": statistics.mean(result["kept"] / result["weights"] for result in results),
        "seconds": statistics.median(result["seconds"] for result in results),
        "problems": sum(bool(result["problems"]) for result in results),
    }
    heldout = f"heldout_{metric.name}"
    if all(heldout in result for result in results):
        row["heldout"] = statistics.mean(scale * result[heldout] for result in results)
    if all("file" in result for result in results):
        row["file"], row["values_bytes"] = (
            [result["file"][part] for result in results] for part in ("total", "values")
        )
    macs = [*map(_macs, results)]
    if None not in macs:
        row["macs"] = macs
    if all("size" in result for result in results):
        row["milliseconds"] = [result["size"]["after"]["milliseconds"] for result in results]
    return row


def _macs(result: dict) -> int | None:
    """Multiplications and additions of one record, where they are known."""
    if "size" in result:
        return round(result["size"]["after"]["flops"] / 2)
    return result["structure"]["macs"] if "structure" in result else None


def as_markdown(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    metric = rows[0]["metric"]
    unit, digits = (", %", 2) if metric.fraction else ("", 3)
    number = lambda value: f"{value:.{digits}f}"
    columns = {
        "config": lambda row: row["name"],
        "settings": lambda row: row["settings"],
        f"test {metric.name}{unit}": lambda row: f"{number(row['mean'])} ± {number(row['spread'])}",
        "each seed": lambda row: " / ".join(map(number, row["values"])),
        f"held out{unit}": lambda row: number(row["heldout"]) if "heldout" in row else "",
        "weights kept": lambda row: _each(row["kept"]),
        "bytes of the file": lambda row: _each(row.get("file", [])),
        "of values": lambda row: _each(row.get("values_bytes", [])),
        "MACs": lambda row: _each(row.get("macs", [])),
        "ms a batch": lambda row: " / ".join(f"{ms:.3g}" for ms in row.get("milliseconds", [])),
        "seconds": lambda row: f"{row['seconds']:.0f}",
        "runs with problems": lambda row: str(row["problems"] or ""),
    }
    cells = {title: [text(row) for row in rows] for title, text in columns.items()}
    shown = {title: column for title, column in cells.items() if any(column)}
    lines = [[*shown], ["---"] * len(shown), *zip(*shown.values(), strict=True)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _each(numbers: list[int]) -> str:
    same = len(set(numbers)) == 1
    return " / ".join(f"{number:,}" for number in (numbers[:1] if same else numbers))


if __name__ == "__main__":
    exit_with_one_line(main)
