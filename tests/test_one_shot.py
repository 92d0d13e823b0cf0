"""The table of one-shot pruning: of a run with options of its data set and learned patterns."""

import sys

import jax
import pytest

import jaxprune as jp
from benchmarks import one_shot
from experiments.phases import Dense, LearnPattern
from experiments.usage import UsageError, exit_with_one_line
from tests.experiments.runs import run_phases


@pytest.mark.parametrize("name", ["stopped", "nowhere"])
def test_a_run_that_is_not_finished_is_one_line(tmp_path, capsys, name):
    (tmp_path / "stopped").mkdir()
    with pytest.raises(SystemExit) as ended:
        exit_with_one_line(one_shot.main, [str(tmp_path / name)])
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and "holds no finished run" in line
    assert f"--out={tmp_path / name}` to its end first" in line


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("99.5%", 0.995),
        ("2:4", jp.NM(2, 4)),
        ("1:4 transposable", jp.NM(1, 4, transposable=True)),
    ],
)
def test_a_column_is_named_by_its_target(name, target):
    assert one_shot.target_of(name) == target


@pytest.mark.parametrize("name", ["120%", "half", "4:2", "2:4:8", ""])
def test_a_target_that_is_none_is_a_usage_error(name):
    with pytest.raises(UsageError, match="no target such as 90%"):
        one_shot.target_of(name)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--records=100", "--batch=250"], "250 must be at least 1 and at most the 100 training"),
        (["--batch=0"], "0 must be at least 1"),
        (["--batches=50"], "unrecognized arguments: --batches=50"),
        (["--batch=many"], "invalid int value: 'many'"),
    ],
)
def test_wrong_flags_are_one_line(tmp_path, flags, message):
    with pytest.raises(UsageError, match=message):
        one_shot.main([str(tmp_path), *flags])


@pytest.mark.slow
@pytest.mark.usefixtures("relaxed_promotion")
def test_a_row_for_each_method_and_for_learned_patterns(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    phases = (Dense(1, batch=64), LearnPattern(epochs=1, batch=64, where="fc1"))
    options = {"limit": 64, "evaluations": 1, "dataset_options": {"standardize": False}}
    result, _ = run_phases(tmp_path / "run", *phases, **options)

    flags = ["--where=fc1", "--targets=50%,2:4", "--records=64", "--batch=64"]
    monkeypatch.setattr(sys, "argv", ["one_shot", str(tmp_path / "run"), *flags])
    monkeypatch.setattr(one_shot, "METHODS", ("magnitude",))  # each has tests of its own
    one_shot.main()
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("| | 50% | 2:4 |") + 2
    rows = [line.strip("| ").split("|") for line in lines[start : start + 4]]
    cells = {name.strip(): [cell.strip() for cell in cells] for name, *cells in rows}
    assert [*cells] == [
        "magnitude",
        "magnitude, then `reconstruct`",
        "learned patterns",
        "learned patterns, then `reconstruct`",
    ]
    assert cells["learned patterns"] == ["", f"{result['accuracy']:.4f}"]
    assert all(len(row) == 2 and row[1] for row in cells.values())
