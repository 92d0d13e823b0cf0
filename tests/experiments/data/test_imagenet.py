"""ImageNet on disk: what of an image a network sees, in training and in evaluation."""

import io

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from experiments import data, outcomes, run
from experiments.data import imagenet
from experiments.devices import Devices
from experiments.experiment import CONFIGS, Experiment
from experiments.phases import Dense
from experiments.usage import UsageError
from tests.experiments.data.stored import PREPARED, encoded, prepare, record_image

sides = st.integers(1, 5000)
whole = lambda width, height: (0.0, 0.0, width, height)


@pytest.fixture(scope="module")
def photo():
    """640 by 427 pixels."""
    return np.asarray(load_sample_image("flower.jpg"))


# Boxes ------------------------------------------------------------------------------------------


@given(width=sides, height=sides, seed=st.integers(0, 2**32))
def test_a_random_box_lies_in_the_image(width, height, seed):
    left, top, right, bottom = imagenet.random_box(width, height, np.random.default_rng(seed))
    assert 0 <= left < right <= width * (1 + 1e-12)
    assert 0 <= top < bottom <= height * (1 + 1e-12)
    assert 3 / 4 - 1e-9 <= (right - left) / (bottom - top) <= 4 / 3 + 1e-9
    if max(width, height) < 8 * min(width, height):
        assert (right - left) * (bottom - top) >= 0.079 * width * height


def test_random_boxes_are_spread_over_areas_ratios_and_places():
    random = np.random.default_rng(0)
    boxes = np.array([imagenet.random_box(400, 400, random) for _ in range(4000)])
    across, down = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    areas, ratios = across * down / 400**2, np.log(across / down)
    # Boxes that don't fit are drawn again, which takes from large areas.
    assert 0.45 < areas.mean() < 0.54 and areas.min() < 0.09 and areas.max() > 0.95
    assert abs(ratios.mean()) < 0.01 and ratios.max() > 0.27 and ratios.min() < -0.27
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    np.testing.assert_allclose(centres.mean(0), 200, atol=3)


@pytest.mark.parametrize(("width", "height"), [(256, 320), (320, 256)])
def test_the_central_box_is_the_middle_of_the_short_side(width, height):
    left, top, right, bottom = imagenet.central_box(width, height)
    assert right - left == bottom - top == 224
    assert (left + right, top + bottom) == (width, height)


# Decoding ---------------------------------------------------------------------------------------


def test_evaluation_sees_the_pixels_of_the_middle(photo):
    image = photo[:256, :320]
    record = {"image": encoded(image), "label": 3}
    pixels, label = imagenet.evaluation_record(record, 224)
    np.testing.assert_array_equal(pixels, image[16:240, 48:272])
    assert label == 3 and label.dtype == np.int32 and pixels.dtype == np.uint8


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("form", ["jpeg", "png", "tiff"])
def test_files_of_all_kinds_become_rgb(photo, mode, form):
    if (mode, form) == ("CMYK", "png"):
        pytest.skip("there is no such file")
    file = io.BytesIO()
    Image.fromarray(photo).convert(mode).save(file, form)
    pixels = imagenet.decoded(file.getvalue(), whole, 32)
    expected = Image.fromarray(photo).convert(mode).convert("RGB").resize((32, 32), 2)
    assert pixels.shape == (32, 32, 3)
    assert abs(pixels.astype(int) - np.asarray(expected).astype(int)).mean() < 2


@pytest.mark.parametrize("size", [24, 64, 120, 200, 400])
def test_decoding_at_a_reduced_size_is_near_the_full_one(photo, size):
    box = lambda width, height: (101.5, 33.25, 523.0, 401.0)
    jpeg = encoded(photo, "jpeg")
    whole = encoded(np.asarray(Image.open(io.BytesIO(jpeg))))
    reduced, full = (imagenet.decoded(data, box, size).astype(int) for data in (jpeg, whole))
    assert abs(reduced - full).mean() < 2
    assert abs(reduced.mean((0, 1)) - full.mean((0, 1))).max() < 0.5


def test_training_sees_another_part_each_time_and_half_of_them_mirrored(photo):
    record = {"image": encoded(photo), "label": 3}
    random = np.random.default_rng(0)
    images = [imagenet.training_record(record, random, 8)[0] for _ in range(50)]
    assert len({image.tobytes() for image in images}) == 50
    slope = np.zeros((60, 60, 3), np.uint8) + np.arange(60, dtype=np.uint8)[:, None]
    record = {"image": encoded(slope), "label": 3}
    mirrored = [
        bool(pixels[0, 0, 0] > pixels[0, -1, 0])
        for pixels, _ in (imagenet.training_record(record, random, 8) for _ in range(400))
    ]
    assert 160 < sum(mirrored) < 240


# The set ----------------------------------------------------------------------------------------


def test_imagenet_is_streamed(prepared):
    dataset = data.load("imagenet2012", prepared, image_size=16)
    train, test = (data.source(each, Devices.all()) for each in (dataset.train, dataset.test))
    assert (train.count, test.count) == (25, 11)
    images, labels = train.first(25)
    assert images.shape == (25, 16, 16, 3) and sorted(labels.tolist()) == [*range(25)]
    assert dataset.task.classes == 1000 and not dataset.task.augment
    assert data.load("imagenet2012", prepared, limit=3).task.image_shape == (224, 224, 3)
    assert data.count(data.load("imagenet2012", prepared, limit=3).train) == 3


def test_scores_are_those_of_the_same_images_in_memory(prepared):
    stored = data.load("imagenet2012", prepared, image_size=16).test
    records = [imagenet.evaluation_record(stored.source[i], 16) for i in range(len(stored))]
    arrays = jax.tree.map(lambda *each: np.stack(each), *records)
    for image, label in records:
        expected = record_image(int(label), (None, None, 3))
        box = imagenet.central_box(expected.shape[1], expected.shape[0])
        square = Image.fromarray(expected).resize((16, 16), Image.Resampling.BILINEAR, box)
        np.testing.assert_array_equal(image, square)
    score = lambda records: records[0].astype(jnp.float32).mean((1, 2, 3)) + records[1]
    with jax.numpy_dtype_promotion("standard"):
        streamed, held = (
            data.source(each, Devices.all()).scorer(score, 1000) for each in (stored, arrays)
        )
        np.testing.assert_array_equal(streamed(), held())


def test_workers_read_what_threads_read(prepared):
    feeds = [
        data.source(
            data.load("imagenet2012", prepared, image_size=8, workers=workers).train, Devices.all()
        ).feed(8, jax.random.key(0))
        for workers in (0, 1)
    ]
    for step in (4, 5):
        chex.assert_trees_all_equal(*(feed.payload(step) for feed in feeds))
    for feed in feeds:
        feed.close()


@pytest.mark.parametrize(("form", "cut"), [("jpeg", 700), ("png", 700), ("png", 0)])
def test_a_damaged_image_is_said_in_one_line(tmp_path, form, cut):
    file_of = lambda label: encoded(record_image(label, (None, None, 3)), form)[: cut or None]
    damaged = lambda label: b"no image" if label == 2 else file_of(label)
    splits = {"train": 4, "validation": 3}
    prepare(tmp_path, *PREPARED[-1][:3], splits, file_of=file_of if cut else damaged)
    dataset = data.load("imagenet2012", tmp_path, image_size=8)
    train, test = (data.source(each, Devices.all()) for each in (dataset.train, dataset.test))
    feed = train.feed(4, jax.random.key(0))
    with pytest.raises(UsageError, match=r"^record \d of imagenet2012 train, \d\.JPEG, is no"):
        feed.payload(0)
    feed.close()
    with pytest.raises(UsageError, match=r"^record \d of imagenet2012 validation, \d\.JPEG, is no"):
        test.scorer(lambda records: records[1], 8)()


# Runs -------------------------------------------------------------------------------------------

TRAINED = Experiment("lenet300100", "imagenet2012", (Dense(epochs=2, batch=4),), evaluations=2)


@pytest.mark.usefixtures("relaxed_promotion", "one_device", "no_pictures")
def test_a_stopped_run_goes_on_with_the_very_next_record(
    prepared, config, tmp_path, stopped_before, handed_out
):
    flags = [f"--data_dir={prepared}", "--set=dataset.image_size=8", "--holdout=2"]
    command = [config(TRAINED), *flags]
    run.main([*command, f"--out={tmp_path / 'whole'}"])
    expected, handed_out[:] = [*handed_out], []
    assert [step for step, _ in expected] == [*range(10)]

    stop = [*command, f"--out={tmp_path / 'stopped'}"]
    stopped_before(7, lambda: run.main(stop))  # the second record of the second epoch is the next
    run.main(stop)
    assert [step for step, _ in handed_out] == [*range(10)]
    chex.assert_trees_all_equal(handed_out, expected)
    task = data.load("imagenet2012", prepared, image_size=8).task
    like, _ = run.initial_network(TRAINED.model, task, jax.random.key(0))
    folders = [tmp_path / name for name in ("whole", "stopped")]
    chex.assert_trees_all_equal(
        *(outcomes.load(each / "network-0-dense", like, Devices.all()) for each in folders)
    )


IMAGENET_CONFIGS = [
    ("resnet50_hoyer", ("dense", "regularize", "fine-tune"), 25_502_912),
    ("resnet50_nm", ("train",), 25_502_912),
    ("resnet18_nm", ("train",), 11_678_912),
]


@pytest.mark.slow
@pytest.mark.usefixtures("relaxed_promotion", "one_device")
@pytest.mark.parametrize(("name", "phases", "weights"), IMAGENET_CONFIGS)
def test_imagenet_configs_run_on_a_small_folder(name, phases, weights, prepared, tmp_path):
    flags = [
        "--limit=4",
        "--evaluations=1",
        f"--out={tmp_path / 'out'}",
        f"--epochs={','.join('1' for _ in phases)}",
    ]
    flags += [f"--set={phase}.batch=2" for phase in phases]
    result = run.main([str(CONFIGS / "imagenet" / f"{name}.py"), f"--data_dir={prepared}", *flags])
    assert result["weights"] == weights
    assert 0 < result["kept"] < result["weights"]
