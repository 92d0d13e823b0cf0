"""Sets as TensorFlow Datasets prepares them."""

import re
import shutil

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data
from experiments.data import prepared as reading
from experiments.data import progress
from experiments.usage import UsageError
from tests.experiments.data.stored import PREPARED, prepare, record_image


@pytest.fixture
def no_reading(monkeypatch):
    import tensorflow_datasets as tfds

    def refuse(*args, **kwargs):
        raise AssertionError("read again")

    return lambda: monkeypatch.setattr(tfds, "data_source", refuse)


def assert_same(first, second):
    assert (first.name, first.task) == (second.name, second.task)
    chex.assert_trees_all_equal((first.train, first.test), (second.train, second.test))


@pytest.mark.parametrize(("name", "version", "image_shape", "splits"), PREPARED[:3])
def test_prepared_sets_are_read_to_the_pixel(prepared, name, version, image_shape, splits):
    dataset = data.load(name, prepared)
    for (images, labels), count in (
        (dataset.train, splits["train"]),
        (dataset.test, splits["test"]),
    ):
        assert images.dtype == np.uint8 and labels.dtype == np.int32
        assert sorted(labels.tolist()) == list(range(count))
        expected = np.stack([record_image(label, image_shape) for label in labels])
        np.testing.assert_array_equal(images, expected)
    task = dataset.task
    assert len(task.mean) == len(task.std) == image_shape[2] and task.image_shape == image_shape
    assert task.augment == name.startswith("cifar")
    assert task.classes == (100 if name == "cifar100" else 10)


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_limit_keeps_the_first_training_records(prepared, name):
    whole, limited = data.load(name, prepared), data.load(name, prepared, limit=5)
    chex.assert_trees_all_equal(limited.train, tuple(array[:5] for array in whole.train))
    chex.assert_trees_all_equal(limited.test, whole.test)


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_pixels_can_stay_between_0_and_1(prepared, name):
    dataset = data.load(name, prepared, standardize=False)
    inputs = dataset.task.inputs((jnp.asarray(dataset.test[0]), None))
    assert float(inputs.min()) == 0.0 and 0.99 < float(inputs.max()) <= 1.0


def test_cache_answers_without_reading(prepared, tmp_path, no_reading):
    cache = tmp_path / "made" / "when needed"
    whole = data.load("mnist", prepared, cache_dir=cache)
    limited = data.load("mnist", prepared, cache_dir=cache, limit=4)
    assert sorted(path.name for path in cache.iterdir()) == [
        "mnist-3.0.1-first4.npz",
        "mnist-3.0.1.npz",
    ]
    no_reading()
    assert_same(data.load("mnist", cache_dir=cache), whole)
    assert_same(data.load("mnist", cache_dir=cache, limit=4), limited)


def test_interrupted_write_leaves_no_cache(prepared, tmp_path, monkeypatch):
    def interrupted(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.load("mnist", prepared, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_long_reads_report_rate_and_time_left(prepared, monkeypatch, capsys):
    monkeypatch.setattr(reading, "_RECORDS_PER_READ", 4)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_REPORTS", 0.0)
    data.load("mnist", prepared)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mnist")]
    counts = [line.split(" records, ")[0] for line in lines]
    assert counts == [
        "mnist train: 4 of 9",
        "mnist train: 8 of 9",
        "mnist train: 9 of 9",
        "mnist test: 3 of 3",
    ]
    assert all(line.endswith(" s left") for line in lines)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("svhn", {}, "unknown data set 'svhn': choose one of digits, mnist, cifar10, cifar100, im"),
        ("digits", {"limit": 0}, "limit must be between 1 and the 1437 training records: 0"),
        ("mnist", {"limit": 10}, "limit must be between 1 and the 9 training records: 10"),
        (
            "cifar10",
            {"image_size": 64},
            "cifar10 has no option 'image_size': it has .'standardize'.",
        ),
        ("imagenet2012", {"image_sise": 64}, "has no option .*did you mean image_size"),
        ("imagenet2012", {"image_size": "64"}, "image_size of imagenet2012 must be of type int"),
        ("imagenet2012", {"image_size": 0}, "image_size must be at least 1, got 0"),
        ("imagenet2012", {"workers": -1}, "workers must be at least 0, got -1"),
        ("imagenet2012", {"limit": 26}, "limit must be between 1 and the 25 training records: 26"),
    ],
)
def test_what_cannot_be_loaded_is_said(prepared, tmp_path, name, options, message):
    cache = tmp_path / "cache"
    with pytest.raises(UsageError, match=message):
        data.load(name, prepared, cache_dir=cache, **options)
    assert not cache.exists()


@pytest.mark.parametrize("folder", ["missing", "unprepared"])
def test_unprepared_set_is_an_error_with_the_remedy(tmp_path, folder):
    (tmp_path / "unprepared" / "mnist" / "3.0.1").mkdir(parents=True)
    with pytest.raises(UsageError) as error:
        data.load("mnist", tmp_path / folder, cache_dir=tmp_path / "cache")
    assert str(tmp_path / folder / "mnist" / "3.0.1") in str(error.value)
    assert "tfds build mnist:3.0.1 --file_format=array_record" in str(error.value)
    assert not (tmp_path / "cache").exists()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A folder with a set of two files a split."""
    folder = tmp_path_factory.mktemp("sharded")
    prepare(folder, *PREPARED[0], shards=2)
    return folder


def remove(file, other):
    file.unlink()


def cut_off(file, other):
    file.write_bytes(file.read_bytes()[:-100])


def empty(file, other):
    file.write_bytes(b"")


def exchange(file, other):
    shutil.copy(other, file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove, "{} is missing"),
        (cut_off, "{} is cut off or damaged"),
        (empty, "{} is cut off or damaged"),
        (exchange, "{} has 2 records instead of 5"),
    ],
)
def test_half_written_set_is_an_error_that_names_the_file(sharded, tmp_path, damage, message):
    shutil.copytree(sharded, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "mnist" / "3.0.1"
    name = "mnist-train.array_record-00001-of-00002"
    damage(folder / name, folder / "mnist-test.array_record-00000-of-00002")
    said = f"mnist 3.0.1 is not whole: {message.format(name)}. Copy it into {folder} again"
    with pytest.raises(UsageError, match=re.escape(said)):
        data.load("mnist", tmp_path)


def test_set_without_its_description_is_not_whole(sharded, tmp_path):
    shutil.copytree(sharded, tmp_path, dirs_exist_ok=True)
    (tmp_path / "mnist" / "3.0.1" / "dataset_info.json").unlink()
    with pytest.raises(UsageError, match=r"is not whole: dataset_info\.json is missing"):
        data.load("mnist", tmp_path)


def test_set_without_one_of_its_splits_is_not_whole(tmp_path):
    prepare(tmp_path, "mnist", "3.0.1", (28, 28, 1), {"train": 2})
    with pytest.raises(UsageError, match="is not whole: it has no split test"):
        data.load("mnist", tmp_path)
