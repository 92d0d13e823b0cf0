"""2:4 matrices as sparse tensor cores read them: the kept values, and 2-bit indices.

Of every four entries of a row two are stored, and with them four bits of metadata: the index of the
first, and above it that of the second. A sparse matrix product has its sparse operand on the left
and sums over its columns. So a kernel (inputs, outputs) is packed as its transpose for the forward
product y^T = W^T x^T, and as it is for the backward product dx^T = W dy^T; a transposable mask
allows both.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.trees import checks

_LAYOUTS = ("row_major", "cutlass")


class Packed24(NamedTuple):
    """`values` (..., rows, columns / 2), and `metadata` of four bits for every two of them.

    The metadata is (..., rows, columns / 16) uint16, low bits first; for values of one byte
    (..., rows, columns / 32) uint32.
    """

    values: jax.Array
    metadata: jax.Array


def pack_24(matrix: jax.Array, *, layout: str = "row_major") -> Packed24:
    """Packs matrices with at most two non-zeros in every four entries of a row.

    Args:
      matrix: (..., rows, columns) of any dtype; columns divide by 16, or by 32 for dtypes of one
        byte. -0.0 may come back as 0.0. Where a group has fewer non-zeros, zeros are stored.
        Hardware skips zeros of 2:4 in dtypes of one and two bytes (of float32, as TF32, 1:2): cast
        before packing what is to run there.
      layout: of the metadata. "row_major", or "cutlass", the order in which CUTLASS's kernels for
        NVIDIA Ampere read it (and PyTorch's), of dtypes of one and two bytes; then rows divide by
        32, or by 16 for dtypes of one byte, and pairs of metadata columns exist.

    Returns:
      Values and metadata, half plus an eighth of the matrix for 16-bit values.

    Raises:
      TypeError: for what is no array, or a wider dtype in CUTLASS's layout.
      ValueError: for sides that don't divide, an unknown layout, or more than two non-zeros in a
        group (outside `jax.jit`; inside, a third one is lost).

    Source: NVIDIA PTX ISA, `mma.sp`, for the indices; CUTLASS's `reorder_meta` for the order.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> row = jnp.array([[0.0, 5, 0, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 9, 1]])
    >>> packed = jp.pack_24(row)
    >>> packed.values
    Array([[5., 6., 7., 8., 0., 0., 9., 1.]], dtype=float32)
    >>> bin(packed.metadata[0, 0])  # groups from the right: 3 and 1, 1 and 0, then two of 3 and 2
    '0b1110111001001101'
    >>> bool((jp.unpack_24(packed) == row).all())
    True
    """
    _check_layout(layout)
    if getattr(matrix, "ndim", 0) < 2:
        error = ValueError if hasattr(matrix, "ndim") else TypeError
        raise error(
            "takes an array of shape (..., rows, columns), one kernel at a time, got "
            + checks.described(matrix)
        )
    *_, rows, columns = matrix.shape
    dtype = jnp.uint32 if matrix.dtype.itemsize == 1 else jnp.uint16
    codes = 2 * dtype.dtype.itemsize  # four bits each
    if columns % (4 * codes):
        raise ValueError(
            f"columns must divide by {4 * codes} for {matrix.dtype}, got a matrix of shape "
            f"{matrix.shape}: pad it with zeros"
        )
    if layout == "cutlass":
        _check_cutlass(matrix.dtype, rows, columns // (4 * codes), dtype)
    groups = matrix.reshape(*matrix.shape[:-1], columns // 4, 4)
    kept = groups != 0
    if not isinstance(matrix, jax.core.Tracer) and bool(jnp.any(jnp.sum(kept, -1) > 2)):
        raise ValueError(
            "more than two of four entries of a row aren't zero: prune with "
            "`nm_mask(abs(matrix), 2, 4, axis=-1)` first, or pack the transpose"
        )
    first, second = _indices(kept)
    pairs = jnp.stack([first, second], axis=-1)
    values = jnp.take_along_axis(groups, pairs, axis=-1).reshape(*matrix.shape[:-1], columns // 2)
    code = (first | second << 2).astype(dtype).reshape(*matrix.shape[:-1], -1, codes)
    shifts = jnp.arange(0, 4 * codes, 4, dtype=dtype)
    metadata = jnp.sum(code << shifts.reshape([1] * (code.ndim - 1) + [codes]), -1, dtype=dtype)
    return Packed24(values, _for_cutlass(metadata) if layout == "cutlass" else metadata)


def unpack_24(packed: Packed24, *, layout: str = "row_major") -> jax.Array:
    """The matrices (..., rows, columns) that were packed.

    Args:
      packed: what `pack_24` returned.
      layout: the layout that it was given.

    Raises:
      TypeError: for what `pack_24` didn't return.
      ValueError: for an unknown layout.
    """
    _check_layout(layout)
    if not isinstance(packed, Packed24):
        kind = checks.described(packed)
        raise TypeError(f"takes the values and metadata that `pack_24` returned, got {kind}")
    values, metadata = packed
    if layout == "cutlass":
        metadata = _from_cutlass(metadata)
    codes = 2 * metadata.dtype.itemsize
    shifts = jnp.arange(0, 4 * codes, 4, dtype=metadata.dtype)
    code = metadata[..., None] >> shifts.reshape([1] * metadata.ndim + [codes])
    code = code.reshape(*metadata.shape[:-1], -1, 1)
    place = jnp.arange(4, dtype=code.dtype).reshape([1] * (code.ndim - 1) + [4])
    pairs = values.reshape(*values.shape[:-1], -1, 2)
    zero = jnp.zeros((), values.dtype)
    second = jnp.where((code >> 2) & 3 == place, pairs[..., 1:], zero)
    groups = jnp.where(code & 3 == place, pairs[..., :1], second)
    return groups.reshape(*values.shape[:-1], -1)


def _indices(kept: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where the two stored entries of a group lie, the first before the second.

    Groups with fewer non-zeros get the zeros that CUTLASS's tools choose.
    """
    k0, k1, k2, k3 = (kept[..., i] for i in range(4))
    first = jnp.where(k0, 0, jnp.where(k1, 1, 2))
    after_first = jnp.where(k3 & ~k2, 3, 2)
    second = jnp.where(k0 & k1, 1, jnp.where(first == 2, 3, after_first))
    return first, second


# In CUTLASS's order rows of a block, by parts of their numbers, and pairs of columns change places.
# Axes: batch, block, the row's high, middle (one bit) and low part, pair of columns, column in it.


def _for_cutlass(metadata: jax.Array) -> jax.Array:
    *batch, rows, columns = metadata.shape
    high = _block(metadata.dtype) // 16
    parts = metadata.reshape(-1, rows // (16 * high), high, 2, 8, columns // 2, 2)
    return parts.transpose(0, 5, 1, 4, 2, 6, 3).reshape(*batch, rows, columns)


def _from_cutlass(metadata: jax.Array) -> jax.Array:
    *batch, rows, columns = metadata.shape
    high = _block(metadata.dtype) // 16
    parts = metadata.reshape(-1, columns // 2, rows // (16 * high), 8, high, 2, 2)
    return parts.transpose(0, 2, 4, 6, 3, 1, 5).reshape(*batch, rows, columns)


def _block(dtype) -> int:
    """Rows that are reordered among themselves."""
    return 64 // jnp.dtype(dtype).itemsize


def _check_layout(layout: str) -> None:
    if layout not in _LAYOUTS:
        raise ValueError(f"layout must be one of {_LAYOUTS}, got {layout!r}")


def _check_cutlass(of_values, rows: int, metadata_columns: int, dtype) -> None:
    if of_values.itemsize > 2:
        raise TypeError(
            f"CUTLASS's kernels read 2:4 of one and two bytes, got {of_values}: cast the matrix to "
            "bfloat16"
        )
    if rows % _block(dtype) or metadata_columns % 2:
        raise ValueError(
            f"CUTLASS's layout takes rows that divide by {_block(dtype)} and an even number of "
            f"metadata columns, got {rows} rows and {metadata_columns}: pad the matrix with zeros"
        )
