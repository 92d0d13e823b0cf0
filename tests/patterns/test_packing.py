"""2:4 packing: lossless, and in the order that sparse tensor cores read."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16, jnp.int8, jnp.float8_e4m3fn]


def sparse(rows, columns, dtype=jnp.float32, seed=0):
    scores = jax.random.uniform(jax.random.key(seed), (rows, columns)) + 0.1
    values = jnp.round(100 * scores).astype(dtype)
    return jnp.where(jp.nm_mask(scores, 2, 4, axis=-1), values, jnp.zeros((), dtype))


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [*(("row_major", dtype) for dtype in DTYPES), *(("cutlass", dtype) for dtype in DTYPES[1:])],
)
def test_packing_is_lossless(layout, dtype):
    matrix = sparse(64, 128, dtype)
    packed = jp.pack_24(matrix, layout=layout)
    assert packed.values.shape == (64, 64)
    assert packed.values.dtype == dtype
    assert packed.metadata.nbytes == 64 * 128 // 8
    np.testing.assert_array_equal(jp.unpack_24(packed, layout=layout), matrix)


@hypothesis.given(st.lists(st.integers(0, 15).filter(lambda b: b.bit_count() <= 2), min_size=4))
@hypothesis.settings(max_examples=50)
def test_any_groups(bits):
    bits = bits[: len(bits) // 4 * 4]
    row = jnp.array([(b >> i & 1) * (1.5 + i) for b in bits for i in range(4)])[None]
    packed = jp.pack_24(row)
    np.testing.assert_array_equal(jp.unpack_24(packed), row)
    for group in range(len(bits)):
        code = int(packed.metadata[0, group // 4]) >> 4 * (group % 4) & 15
        assert code & 3 < code >> 2  # the hardware wants ascending indices


def cutlass_offset(row, column, rows, itemsize):
    """Where CUTLASS's `reorder_meta` puts an entry: rows of a group interleaved, then two by two
    blocks transposed, then pairs of columns one below the other."""
    group, interweave = (32, 4) if itemsize == 2 else (16, 2)
    row = row // group * group + row % 8 * interweave + row % group // 8
    row, column = row // 2 * 2 + column % 2, column // 2 * 2 + row % 2
    return column // 2 * rows * 2 + row * 2 + column % 2


@pytest.mark.parametrize(("dtype", "itemsize"), [(jnp.bfloat16, 2), (jnp.int8, 4)])
def test_cutlass_order(dtype, itemsize):
    matrix = sparse(64, 256, dtype)
    plain = np.asarray(jp.pack_24(matrix).metadata)
    reordered = np.asarray(jp.pack_24(matrix, layout="cutlass").metadata)
    assert plain.dtype.itemsize == itemsize
    expected = np.zeros(plain.size, plain.dtype)
    for row, column in np.ndindex(plain.shape):
        expected[cutlass_offset(row, column, 64, itemsize)] = plain[row, column]
    np.testing.assert_array_equal(reordered.reshape(-1), expected)


def test_the_transposed_pair_of_a_transposable_mask():
    kernel = jax.random.normal(jax.random.key(0), (64, 128))
    kernel = jnp.where(jp.transposable_nm_mask(abs(kernel), 2, 4), kernel, 0)
    forward, backward = jp.pack_24(kernel.T), jp.pack_24(kernel)
    np.testing.assert_array_equal(jp.unpack_24(forward), kernel.T)
    np.testing.assert_array_equal(jp.unpack_24(backward), kernel)


def test_batches_under_jit_and_vmap():
    matrix = sparse(96, 64, jnp.bfloat16).reshape(3, 32, 64)
    packed = jax.jit(jp.pack_24)(matrix)
    np.testing.assert_array_equal(jax.jit(jp.unpack_24)(packed), matrix)
    each = jax.vmap(lambda x: jp.pack_24(x, layout="cutlass"))(matrix)
    together = jp.pack_24(matrix, layout="cutlass")
    np.testing.assert_array_equal(each.metadata, together.metadata)
    np.testing.assert_array_equal(jp.unpack_24(together, layout="cutlass"), matrix)


def test_errors():
    with pytest.raises(ValueError, match=r"divide by 16 for float32, got .* \(4, 24\)"):
        jp.pack_24(jnp.zeros((4, 24)))
    with pytest.raises(ValueError, match="divide by 32 for int8"):
        jp.pack_24(jnp.zeros((4, 16), jnp.int8))
    with pytest.raises(ValueError, match="more than two of four"):
        jp.pack_24(jnp.ones((4, 16)))
    with pytest.raises(ValueError, match=r"rows that divide by 32 .* got 48 rows"):
        jp.pack_24(jnp.zeros((48, 32), jnp.bfloat16), layout="cutlass")
    with pytest.raises(TypeError, match="2:4 of one and two bytes, got float32: cast"):
        jp.pack_24(jnp.zeros((64, 32)), layout="cutlass")
    with pytest.raises(ValueError, match="layout must be one of"):
        jp.pack_24(jnp.zeros((4, 16)), layout="blocked")
    with pytest.raises(TypeError, match="2:4 of one and two bytes, got float32: cast"):
        jp.pack_24(jnp.zeros((64, 32)), layout="cutlass")
    with pytest.raises(ValueError, match="layout must be one of"):
        jp.unpack_24(jp.pack_24(jnp.zeros((4, 16))), layout="blocked")
