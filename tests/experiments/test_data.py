import io
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from experiments import data, run

# name, version, image shape (None: sizes vary), split -> records
PREPARED = [
    ("mnist", "3.0.1", (28, 28, 1), {"train": 9, "test": 3}),
    ("cifar10", "3.0.2", (32, 32, 3), {"train": 6, "test": 2}),
    ("cifar100", "3.0.2", (32, 32, 3), {"train": 5, "test": 2}),
    ("imagenet2012", "5.1.0", (None, None, 3), {"train": 4, "validation": 2}),
]


def record_image(label, image_shape):
    """An image of noise that the label determines; free sizes depend on the label too."""
    height, width, channels = image_shape
    shape = (height or 40 + label, width or 50 - label, channels)
    return np.random.default_rng(label).integers(0, 256, shape, dtype=np.uint8)


def encoded(image):
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "png")
    file.seek(0)
    return file


def prepare(folder, name, version, image_shape, splits):
    """Writes a small set under the name of a stock one, as TFDS does, without TensorFlow."""
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        url_infos = {}  # noqa: RUF012 (nothing to download, so no checksums to look for)

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=image_shape),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(count) for split, count in splits.items()}

        def _generate_examples(self, count):
            for label in range(count):
                yield label, {"image": encoded(record_image(label, image_shape)), "label": label}

    Builder.name = name
    Builder(data_dir=folder, file_format="array_record").download_and_prepare()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    for name, version, image_shape, splits in PREPARED:
        prepare(folder, name, version, image_shape, splits)
    return folder


@pytest.fixture
def no_reading(monkeypatch):
    import tensorflow_datasets as tfds

    def refuse(*args, **kwargs):
        raise AssertionError("read again")

    return lambda: monkeypatch.setattr(tfds, "data_source", refuse)


def assert_same_datasets(first, second):
    for left, right in zip(first, second, strict=True):
        np.testing.assert_array_equal(left, right)


# ---- reading ----------------------------------------------------------------------------------


def test_digits_are_split_once_and_for_all():
    dataset = data.load()
    assert_same_datasets(dataset, data.load("digits"))
    assert dataset.train_images.shape == (1437, 8, 8, 1)
    assert dataset.test_images.shape == (360, 8, 8, 1)
    assert dataset.train_images.dtype == np.uint8
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int32
    assert dataset.train_labels[:8].tolist() == [2, 8, 2, 6, 6, 7, 1, 9]
    assert dataset.image_shape == (8, 8, 1)
    assert not dataset.augment


def test_digits_on_the_two_sides_are_all_digits_once():
    dataset = data.load()
    images = np.concatenate([dataset.train_images, dataset.test_images]).reshape(-1, 64)
    labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    found = sorted(zip(images.tolist(), labels.tolist(), strict=True))
    digits = load_digits()
    scaled = np.round(digits.data * 255 / 16).astype(int)
    assert found == sorted(zip(scaled.tolist(), digits.target.tolist(), strict=True))


@pytest.mark.parametrize(("name", "version", "image_shape", "splits"), PREPARED[:3])
def test_prepared_sets_are_read_to_the_pixel(prepared, name, version, image_shape, splits):
    dataset = data.load(name, prepared)
    for images, labels, count in (
        (dataset.train_images, dataset.train_labels, splits["train"]),
        (dataset.test_images, dataset.test_labels, splits["test"]),
    ):
        assert images.dtype == np.uint8 and labels.dtype == np.int32
        assert sorted(labels.tolist()) == list(range(count))
        expected = np.stack([record_image(label, image_shape) for label in labels])
        np.testing.assert_array_equal(images, expected)
    assert len(dataset.mean) == len(dataset.std) == dataset.image_shape[2] == image_shape[2]
    assert dataset.augment == name.startswith("cifar")
    assert dataset.classes == (100 if name == "cifar100" else 10)


def test_imagenet_is_cut_to_one_size(prepared):
    dataset = data.load("imagenet2012", prepared, image_size=16)
    assert dataset.train_images.shape == (4, 16, 16, 3)
    assert dataset.test_images.shape == (2, 16, 16, 3)
    assert dataset.classes == 1000
    assert data.load("imagenet2012", prepared, limit=1).image_shape == (224, 224, 3)


def test_central_square_keeps_the_middle_of_the_short_side():
    image = np.random.default_rng(0).integers(0, 256, (256, 320, 3), dtype=np.uint8)
    np.testing.assert_array_equal(data._central_square(image, 224), image[16:240, 48:272])


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_limit_keeps_the_first_training_records(prepared, name):
    whole, limited = data.load(name, prepared), data.load(name, prepared, limit=5)
    np.testing.assert_array_equal(limited.train_images, whole.train_images[:5])
    np.testing.assert_array_equal(limited.train_labels, whole.train_labels[:5])
    np.testing.assert_array_equal(limited.test_images, whole.test_images)


def test_cache_answers_without_reading(prepared, tmp_path, no_reading):
    cache = tmp_path / "made" / "when needed"
    whole = data.load("mnist", prepared, cache_dir=cache)
    limited = data.load("mnist", prepared, cache_dir=cache, limit=4)
    small = data.load("imagenet2012", prepared, cache_dir=cache, image_size=8)
    assert sorted(path.name for path in cache.iterdir()) == [
        "imagenet2012-5.1.0-8px.npz",
        "mnist-3.0.1-first4.npz",
        "mnist-3.0.1.npz",
    ]
    no_reading()
    assert_same_datasets(data.load("mnist", cache_dir=cache), whole)
    assert_same_datasets(data.load("mnist", cache_dir=cache, limit=4), limited)
    assert_same_datasets(data.load("imagenet2012", cache_dir=cache, image_size=8), small)


def test_interrupted_write_leaves_no_cache(prepared, tmp_path, monkeypatch):
    def interrupted(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.load("mnist", prepared, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_long_reads_report_rate_and_time_left(prepared, monkeypatch, capsys):
    monkeypatch.setattr(data, "_RECORDS_PER_READ", 4)
    monkeypatch.setattr(data, "_SECONDS_BETWEEN_REPORTS", 0.0)
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
        ("cifar10", {"image_size": 64}, "cifar10 has images of one size: leave it out"),
        ("imagenet2012", {"image_size": 0}, "image_size must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_loaded_is_said(prepared, tmp_path, name, options, message):
    cache = tmp_path / "cache"
    with pytest.raises(ValueError, match=message):
        data.load(name, prepared, cache_dir=cache, **options)
    assert not cache.exists()


@pytest.mark.parametrize("folder", ["missing", "unprepared"])
def test_unprepared_set_is_an_error_with_the_remedy(tmp_path, folder):
    (tmp_path / "unprepared" / "mnist" / "3.0.1").mkdir(parents=True)
    with pytest.raises(FileNotFoundError) as error:
        data.load("mnist", tmp_path / folder, cache_dir=tmp_path / "cache")
    assert str(tmp_path / folder / "mnist" / "3.0.1") in str(error.value)
    assert "tfds build mnist:3.0.1 --file_format=array_record" in str(error.value)
    assert not (tmp_path / "cache").exists()


def test_holdout_takes_the_last_training_records():
    dataset = data.load(limit=100)
    kept, (images, labels) = data.holdout(dataset, 30)
    np.testing.assert_array_equal(kept.train_images, dataset.train_images[:70])
    np.testing.assert_array_equal(kept.train_labels, dataset.train_labels[:70])
    np.testing.assert_array_equal(images, dataset.train_images[70:])
    np.testing.assert_array_equal(labels, dataset.train_labels[70:])
    assert kept.test_images is dataset.test_images


@pytest.mark.parametrize("count", [-1, 0, 100])
def test_holdout_leaves_something_on_both_sides(count):
    with pytest.raises(ValueError, match=f"count must be between 1 and 99, got {count}"):
        data.holdout(data.load(limit=100), count)


# ---- on the device ----------------------------------------------------------------------------


def test_normalize_known_values():
    images = jnp.array([[0, 51], [255, 255]], jnp.uint8)
    normalized = data.normalize(images, (0.5, 0.2), (0.25, 0.4))
    assert normalized.dtype == jnp.float32
    chex.assert_trees_all_close(normalized, jnp.array([[-2.0, 0.0], [2.0, 2.0]]), atol=1e-6)


def test_normalized_digits_have_mean_zero_and_deviation_one():
    dataset = data.load()
    normalized = data.normalize(jnp.asarray(dataset.train_images), dataset.mean, dataset.std)
    assert abs(float(normalized.mean())) < 2e-3
    assert abs(float(normalized.std()) - 1) < 2e-3


def test_normalize_wants_one_entry_a_channel():
    with pytest.raises(ValueError, match="each of 3 channels, got 1 and 1"):
        data.normalize(jnp.zeros((2, 4, 4, 3), jnp.uint8), (0.5,), (0.5,))


# shape of the images, pad
CROPS = [((9, 6, 5, 3), 2), ((25, 4, 7, 1), 4), ((2, 3, 3, 2), 0)]


def reference_crop_flip(images, rows, columns, mirrored, pad):
    cropped = np.zeros_like(images)
    batch, height, width, _ = images.shape
    for index in range(batch):
        for row in range(height):
            for column in range(width):
                from_row = row + rows[index] - pad
                from_column = column + columns[index] - pad
                to_column = width - 1 - column if mirrored[index] else column
                if 0 <= from_row < height and 0 <= from_column < width:
                    cropped[index, row, to_column] = images[index, from_row, from_column]
    return cropped


@pytest.mark.parametrize(("shape", "pad"), CROPS)
def test_crop_flip_equals_the_slow_reference(shape, pad):
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, shape, dtype=np.uint8)
    rows, columns = rng.integers(0, 2 * pad + 1, (2, shape[0]), dtype=np.int32)
    mirrored = rng.integers(0, 2, shape[0]).astype(bool)
    cropped = jax.jit(data.crop_flip, static_argnums=4)(images, rows, columns, mirrored, pad)
    assert cropped.dtype == jnp.uint8
    np.testing.assert_array_equal(
        cropped, reference_crop_flip(images, rows, columns, mirrored, pad)
    )


def test_random_crop_flip_draws_every_shift_and_mirrors_half():
    marked = np.zeros((2000, 5, 7, 1), np.uint8)
    marked[:, 2, 2], marked[:, 2, 4] = 1, 2
    transform = jax.jit(data.random_crop_flip, static_argnums=2)
    cropped = np.asarray(transform(jax.random.key(0), marked, 2))
    _, rows, left, _ = np.nonzero(cropped == 1)
    _, _, right, _ = np.nonzero(cropped == 2)
    assert set(rows.tolist()) == set(range(5))
    assert set(left.tolist()) == set(range(7))
    assert len(left) == len(right) == 2000
    assert 900 < np.sum(left > right) < 1100


def test_random_crop_flip_depends_on_the_key_alone():
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    first, again, other = (data.random_crop_flip(jax.random.key(k), images) for k in (0, 0, 1))
    chex.assert_trees_all_equal(first, again)
    assert jnp.any(first != other)


@pytest.mark.parametrize(("count", "batch"), [(12, 4), (13, 4), (5, 5), (7, 1)])
def test_epoch_batches_are_a_permutation_cut_to_whole_batches(count, batch):
    batches = data.epoch_batches(jax.random.key(0), count, batch)
    assert batches.shape == (count // batch, batch)
    assert batches.dtype == jnp.int32
    indices = batches.ravel().tolist()
    assert len(set(indices)) == len(indices)
    assert set(indices) <= set(range(count))


def test_epoch_batches_depend_on_the_key_alone():
    draw = jax.jit(data.epoch_batches, static_argnums=(1, 2))
    first, again = draw(jax.random.key(3), 100, 10), data.epoch_batches(jax.random.key(3), 100, 10)
    chex.assert_trees_all_equal(first, again)
    assert jnp.any(first != draw(jax.random.key(4), 100, 10))


@pytest.mark.parametrize("batch", [0, 11])
def test_epoch_batches_refuse_a_batch_that_does_not_fit(batch):
    with pytest.raises(ValueError, match=f"between 1 and the 10 records, got {batch}"):
        data.epoch_batches(jax.random.key(0), 10, batch)


# ---- a whole experiment on records as TFDS lays them out ---------------------------------------


IMAGENET_CONFIGS = [
    ("imagenet_resnet50_hoyer", ("dense", "regularize", "fine-tune"), 25_502_912),
    ("imagenet_resnet50_nm", ("train",), 25_502_912),
    ("imagenet_resnet18_nm", ("train",), 11_678_912),
]


@pytest.mark.slow
@pytest.mark.usefixtures("relaxed_promotion", "one_device")
@pytest.mark.parametrize(("name", "phases", "weights"), IMAGENET_CONFIGS)
def test_imagenet_configs_run_on_a_small_folder(name, phases, weights, prepared, tmp_path):
    flags = [
        "--evaluations=1",
        f"--out={tmp_path / 'out'}",
        f"--epochs={','.join('1' for _ in phases)}",
    ]
    flags += [f"--set={phase}.batch=2" for phase in phases]
    config = Path(__file__).parents[2] / f"experiments/configs/{name}.py"
    result = run.main([str(config), f"--data_dir={prepared}", *flags])
    assert result["weights"] == weights
    assert 0 < result["kept"] < result["weights"]
