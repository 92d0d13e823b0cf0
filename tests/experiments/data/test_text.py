"""Text as records of bytes, of the standard library and as TFDS prepares it."""

import sysconfig
from pathlib import Path

import numpy as np
import pytest

from experiments import data
from experiments.data import text
from experiments.usage import UsageError
from tests.experiments.data.stored import prepare_text


@pytest.fixture
def small_library(tmp_path, monkeypatch):
    """Forty files of a library, and some that don't belong to it."""
    for number in range(40):
        path = tmp_path / f"package{number % 3}" / f"module{number}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"number = {number}\n" * 30)
    for place in ("site-packages", "test", "package0/tests"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "other.py").write_text("other\n" * 1_000)
    (tmp_path / "notes.txt").write_text("notes\n" * 1_000)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    return tmp_path


def as_text(records):
    return records.tobytes().decode()


def test_the_library_is_cut_into_windows(small_library):
    dataset = data.load("python", context=31)
    train, test = dataset.train, dataset.test
    assert train.dtype == test.dtype == np.uint8 and train.shape[1] == test.shape[1] == 32
    files = sorted(small_library.rglob("module*.py"))
    whole = sum(path.stat().st_size + 1 for path in files)
    assert whole - 64 < train.size + test.size <= whole
    shown = as_text(train) + as_text(test)
    assert "other" not in shown and "notes" not in shown
    first = as_text(train).split("\0")[0]
    assert first in {path.read_text() for path in files}  # whole files, as they lie on the disk


def test_a_file_is_for_training_or_for_testing_alike_everywhere(small_library):
    train, test = text.library()
    assert len(train) + len(test) == 40 and not {*train} & {*test}
    assert 1 <= len(test) <= 10
    (small_library / "more.py").write_text("more\n")
    again = text.library()
    for before, after in zip((train, test), again, strict=True):
        assert [each for each in after if each != b"more\n"] == before


def test_fewer_records_are_spread_over_all_of_the_text(small_library):
    whole = data.load("python", context=15)
    few = data.load("python", context=15, limit=20, test_records=5)
    for all_of_it, some in ((whole.train, few.train), (whole.test, few.test)):
        places = [int(np.flatnonzero((all_of_it == row).all(1))[0]) for row in some[:2]]
        assert places[0] == 0
        np.testing.assert_array_equal(
            some[-1], all_of_it[(len(some) - 1) * len(all_of_it) // len(some)]
        )
    assert few.train.shape == (20, 16) and few.test.shape == (5, 16)


def test_the_real_library_is_large():
    dataset = data.load("python")
    assert dataset.train.shape[1] == 257
    assert dataset.train.size > 5e6
    assert 0.04 < dataset.test.size / dataset.train.size < 0.25
    assert b"import" in dataset.test.tobytes()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with small sets of text."""
    folder = tmp_path_factory.mktemp("text")
    prepare_text(folder, "lm1b", None, "1.1.0", {"train": 9, "test": 3})
    prepare_text(folder, "tiny_shakespeare", None, "1.0.0", {"train": 4, "test": 2})
    prepare_text(folder, "c4", "en", "3.1.0", {"train": 5, "validation": 2})
    return folder


def all_of(records):
    """The records of a split in memory or on disk."""
    on_disk = isinstance(records, data.Stored)
    return np.stack([records.source[i] for i in range(len(records))]) if on_disk else records


@pytest.mark.parametrize(
    ("name", "count", "stored"),
    [("lm1b", 9, True), ("c4/en", 5, True), ("tiny_shakespeare", 4, False)],
)
def test_prepared_text_is_read_to_the_byte(prepared, name, count, stored):
    dataset = data.load(name, prepared, context=3)
    assert isinstance(dataset.train, data.Stored) is isinstance(dataset.test, data.Stored) is stored
    train, test = all_of(dataset.train), all_of(dataset.test)
    documents = as_text(train).split("\0")
    wanted = {f"document {number}" for number in range(count)}
    assert {*documents[:-1]} == wanted if documents[-1] == "" else {*documents[:-1]} < wanted
    assert dataset.name == name and dataset.task == data.load("python", context=3).task
    few = data.load(name, prepared, context=3, limit=2, test_records=1)
    np.testing.assert_array_equal(all_of(few.train), train[:2])
    np.testing.assert_array_equal(all_of(few.test), test[:1])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("python", {"context": 0}, "context must be between 1 and the [0-9,]+ bytes"),
        ("python", {"context": 10**9}, "context must be between 1 and the [0-9,]+ bytes"),
        ("python", {"limit": 0}, "limit must be between 1 and the"),
        ("python", {"test_records": 0}, "test_records must be between 1 and the"),
        ("python", {"standardize": False}, "python has no option 'standardize'"),
        ("lm1b", {"context": 10, "limit": 1_000}, "limit must be between 1 and the 9 training"),
        ("lm1b", {"context": 10, "limit": 0}, "limit must be between 1 and the 9 training"),
        ("lm1b", {"context": 10, "test_records": -1}, "test_records must be between 1 and the"),
        ("lm1b", {"context": 0}, "context must be at least 1, got 0"),
        ("lm1b", {"context": 99}, "context must be between 1 and the 98 bytes"),
        ("wiki40b/en", {}, "wiki40b/en 1.3.0 is not prepared: .* or load 'python'"),
    ],
)
def test_what_cannot_be_loaded_is_said(prepared, name, options, message):
    with pytest.raises(UsageError, match=message):
        data.load(name, prepared, **options)


def test_a_machine_without_the_source_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(UsageError, match=f"isn't in {Path(tmp_path)}"):
        data.load("python")
