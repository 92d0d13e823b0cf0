"""Images on the device: normalised, and augmented from nothing but a key."""

import jax
import jax.numpy as jnp


def normalize(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Scales uint8 images (..., channels) to float32 with the given mean and deviation taken out.

    Raises:
        ValueError: `mean` or `std` does not have one entry a channel.
    """
    channels = images.shape[-1]
    if not len(mean) == len(std) == channels:
        raise ValueError(
            f"mean and std must have one entry for each of {channels} channels, "
            f"got {len(mean)} and {len(std)}"
        )

    def per_pixel(values):
        return jnp.broadcast_to(jnp.asarray(values, jnp.float32), images.shape)

    return (images.astype(jnp.float32) / 255 - per_pixel(mean)) / per_pixel(std)


def random_crop_flip(key: jax.Array, images: jax.Array, pad: int = 4) -> jax.Array:
    """Shifts each image by up to `pad` pixels both ways, filling with zeros, and mirrors half.

    Takes and returns images (batch, height, width, channels) of any dtype.
    """
    batch = len(images)
    row_key, column_key, mirror_key = jax.random.split(key, 3)
    rows = jax.random.randint(row_key, (batch,), 0, 2 * pad + 1)
    columns = jax.random.randint(column_key, (batch,), 0, 2 * pad + 1)
    mirrored = jax.random.bernoulli(mirror_key, shape=(batch,))
    return crop_flip(images, rows, columns, mirrored, pad)


def crop_flip(
    images: jax.Array, rows: jax.Array, columns: jax.Array, mirrored: jax.Array, pad: int
) -> jax.Array:
    """Cuts the window at (`rows`, `columns`) from each zero-padded image and mirrors some of them.

    Takes and returns images (batch, height, width, channels); `rows` and `columns` are int32
    (batch,) in [0, 2 * pad], where `pad` means no shift, and `mirrored` is bool (batch,).
    """
    batch, height, width, _ = images.shape
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    down = jax.lax.broadcasted_iota(jnp.int32, (batch, height), 1)
    right = jax.lax.broadcasted_iota(jnp.int32, (batch, width), 1)
    # Mirrored column indices do the flip within the gather of the crop: one pass over the pixels.
    right = jnp.where(mirrored[:, None], width - 1 - right, right)
    window = padded.at[
        jnp.arange(batch)[:, None, None],
        (rows[:, None] + down)[:, :, None],
        (columns[:, None] + right)[:, None, :],
    ]
    return window.get(mode="promise_in_bounds")
