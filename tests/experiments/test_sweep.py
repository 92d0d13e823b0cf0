import dataclasses
import functools
import json

import pytest

from experiments import run, sweep
from experiments.experiment import CONFIGS
from experiments.log import rows_of
from experiments.phases import Dense, FineTune, PruneMagnitudes, Threshold
from experiments.usage import UsageError
from tests.experiments.runs import SMALL

pytestmark = pytest.mark.usefixtures("relaxed_promotion", "one_device", "no_pictures")

DENSE = Dense(epochs=1, batch=64)


def with_phases(*phases):
    return dataclasses.replace(SMALL, phases=phases, limit=128, evaluations=2)


def lines_of(table):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def test_sweep_compares_and_repeats_nothing(config, tmp_path, monkeypatch, capsys):
    configs = [
        config(with_phases(DENSE, PruneMagnitudes()), "one_shot"),
        config(with_phases(DENSE, PruneMagnitudes(), FineTune(1, batch=64)), "tuned"),
    ]
    folder = tmp_path / "sweep"
    command = [*configs, "--sparsities=0.9,0.8", "--seeds=0", f"--out={folder}"]
    table = sweep.main(command)

    assert (folder / "table.md").read_text() == table
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert f"{folder / 'table.md'}\n{folder / 'picture.png'}\n" in capsys.readouterr().out
    header = [cell.strip() for cell in table.splitlines()[0].split("|")[1:-1]]
    assert header[:5] == ["config", "settings", "test accuracy, %", "each seed", "weights kept"]
    assert [(line[0], line[1], line[4]) for line in lines_of(table)] == [
        ("one_shot", "sparsity=0.9", "5,020"),
        ("one_shot", "sparsity=0.8", "10,040"),
        ("tuned", "sparsity=0.9", "5,020"),
        ("tuned", "sparsity=0.8", "10,040"),
    ]
    monkeypatch.setattr(run, "main", functools.partial(pytest.fail, "repeated"))
    assert sweep.main(command) == table


def test_settings_come_from_the_command_line_or_else_from_the_config(config, tmp_path):
    grid = [{"threshold.value": 0.5}, {"threshold.value": 2.0, "sparsity": 0.7}]
    path = config(with_phases(DENSE, Threshold(1.0)), grid=grid)
    table = sweep.main([path, "--seeds=0,1", f"--out={tmp_path / 'own'}"])
    few, many = lines_of(table)[1][4], lines_of(table)[0][4]
    assert [line[1] for line in lines_of(table)] == [
        "threshold.value=0.5",
        "threshold.value=2.0 sparsity=0.7",
    ]
    assert max(map(to_int, few.split("/"))) < min(map(to_int, many.split("/")))

    flags = ["--vary=threshold.value=0.5,1", "--vary=threshold.rule=std", "--seeds=0"]
    table = sweep.main([path, *flags, f"--out={tmp_path / 'other'}"])
    assert [line[1] for line in lines_of(table)] == [
        "threshold.value=0.5 threshold.rule=std",
        "threshold.value=1 threshold.rule=std",
    ]


def to_int(text):
    return int(text.replace(",", ""))


def test_phases_in_common_are_trained_once(config, tmp_path):
    path = config(with_phases(DENSE, Threshold(1.0), FineTune(1, batch=64)))
    alone = run.main([path, f"--out={tmp_path / 'alone'}", "--set=threshold.value=0.5"])
    sweep.main([path, "--vary=threshold.value=1,0.5", "--seeds=0", f"--out={tmp_path / 'both'}"])
    first, second = (
        tmp_path / "both" / f"small-threshold.value{value}-seed0" for value in ("1", "0.5")
    )
    logs = [
        [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        for out in (first, second)
    ]
    assert [row for row in logs[0] if row["number"] == 0] == logs[1][:2]  # its seconds too
    assert len(logs[0]) == len(logs[1]) == 4

    shared = json.loads((second / "result.json").read_text())
    assert shared["accuracy"] == alone["accuracy"] and shared["kept"] == alone["kept"]


def test_dense_training_is_the_same_at_each_sparsity(config, tmp_path):
    path = config(with_phases(DENSE, PruneMagnitudes(), FineTune(1, batch=64)))
    sweep.main([path, "--sparsities=0.5,0.7", "--seeds=0", f"--out={tmp_path}"])
    logs = [rows_of(tmp_path / f"small-sparsity{s}-seed0" / "metrics.jsonl") for s in (0.5, 0.7)]
    assert logs[0][0] == logs[1][0]  # its seconds too
    assert logs[0][-1]["sparsity"] < logs[1][-1]["sparsity"]


def test_a_run_with_other_settings_is_not_taken_for_finished(config, tmp_path):
    command = ["--sparsities=0.9", "--seeds=0", f"--out={tmp_path / 'sweep'}"]
    sweep.main([config(with_phases(DENSE, PruneMagnitudes())), *command])
    path = config(with_phases(dataclasses.replace(DENSE, batch=32), PruneMagnitudes()))
    with pytest.raises(UsageError, match="other settings"):
        sweep.main([path, *command])


def test_configs_of_two_data_sets_have_folders_of_their_own(tmp_path):
    configs = [str(CONFIGS / name / "probmask.py") for name in ("digits", "mnist")]
    flags, others = sweep.parse([*configs, "--seeds=3", f"--out={tmp_path}", "--holdout=5"])
    cells = sweep.planned(flags, others)
    assert [cell.name for cell in cells] == ["digits/probmask", "mnist/probmask"]
    assert [cell.runs[0][0].name for cell in cells] == [
        "digits-probmask-seed3",
        "mnist-probmask-seed3",
    ]
    assert "--holdout=5" in cells[0].runs[0][1]


def test_flags_that_vary_nothing_go_to_every_run(config, tmp_path):
    path = config(with_phases(DENSE, Threshold(1.0)), grid=[{"threshold.value": 0.5}])
    flags = ["--set=threshold.rule=absolute", "--vary=threshold.value=0.1,0.2", "--sparsity=0.5"]
    cells = sweep.planned(*sweep.parse([path, "--seeds=0", f"--out={tmp_path}", *flags]))
    made = [run.configured(run.parse(command)) for cell in cells for _, command in cell.runs]
    assert [each.phases[1] for each in made] == [Threshold(v, "absolute") for v in (0.1, 0.2)]
    assert [each.sparsity for each in made] == [0.5, 0.5]
