import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.tasks.images import crop_flip, normalize, random_crop_flip


def test_normalize_known_values():
    images = jnp.array([[0, 51], [255, 255]], jnp.uint8)
    normalized = normalize(images, (0.5, 0.2), (0.25, 0.4))
    assert normalized.dtype == jnp.float32
    chex.assert_trees_all_close(normalized, jnp.array([[-2.0, 0.0], [2.0, 2.0]]), atol=1e-6)


def test_normalize_wants_one_entry_a_channel():
    with pytest.raises(ValueError, match="each of 3 channels, got 1 and 1"):
        normalize(jnp.zeros((2, 4, 4, 3), jnp.uint8), (0.5,), (0.5,))


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
    cropped = jax.jit(crop_flip, static_argnums=4)(images, rows, columns, mirrored, pad)
    assert cropped.dtype == jnp.uint8
    np.testing.assert_array_equal(
        cropped, reference_crop_flip(images, rows, columns, mirrored, pad)
    )


def test_random_crop_flip_draws_every_shift_and_mirrors_half():
    marked = np.zeros((2000, 5, 7, 1), np.uint8)
    marked[:, 2, 2], marked[:, 2, 4] = 1, 2
    transform = jax.jit(random_crop_flip, static_argnums=2)
    cropped = np.asarray(transform(jax.random.key(0), marked, 2))
    _, rows, left, _ = np.nonzero(cropped == 1)
    _, _, right, _ = np.nonzero(cropped == 2)
    assert set(rows.tolist()) == set(range(5))
    assert set(left.tolist()) == set(range(7))
    assert len(left) == len(right) == 2000
    assert 900 < np.sum(left > right) < 1100


def test_random_crop_flip_depends_on_the_key_alone():
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    first, again, other = (random_crop_flip(jax.random.key(k), images) for k in (0, 0, 1))
    chex.assert_trees_all_equal(first, again)
    assert jnp.any(first != other)
