"""The network as a file: packed integers, or floats, of the weights that a mask keeps.

The size of a compressed network is the size of this file, whatever made the network: the codes of
quantized weights, each of as many bits as its layer has; other kept weights as they are; where they
belong, as a bit a weight or as the gaps between them, whichever is smaller after deflate; all other
leaves as they are; and a header with names, shapes, bits and steps.
"""

import json
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from experiments import processes
from experiments.checkpoints import leaf_name
from experiments.devices import on_host
from experiments.phases.base import Network

Leaves: TypeAlias = dict[str, Any]  # by name

_LENGTH = struct.Struct("<I")
_MOST = 255  # a byte that stands for so many pruned weights, with none kept after them


class FileSize(NamedTuple):
    """Bytes of a file: of kept values, which a budget is about, of their places, and in all."""

    values: int
    places: int
    total: int


def write(network: Network, path: Path) -> FileSize:
    """Writes the network's file, which all processes can read then."""
    leaves, mask, grids = _flat(network)
    quantized = {name: keep if grids[name] else None for name, keep in mask.items()}
    codes: Any = jp.pack_quantized(leaves, quantized, grids) if any(grids.values()) else {}
    header, content, stream, values, places = [], [], [], 0, 0
    for name, leaf in leaves.items():
        keep, grid = mask[name], grids[name]
        kind, where = ("all", b"") if keep is None else _places(keep)
        how, kept = leaf.dtype.name, (leaf if keep is None else leaf[keep]).tobytes()
        if grid:
            bits = int(grid.bits)
            how, kept = [bits, float(grid.step)], b""
            stream.append(np.unpackbits(codes[name], count=int(keep.sum()) * bits))
        header.append([name, [*leaf.shape], how, kind, [len(where), len(kept)]])
        content += [where, kept]
        places += len(where)
        values += 0 if keep is None else len(kept)
    # Of all leaves in one stream of bits, that none but the last byte is filled up.
    packed = np.packbits(np.concatenate([np.zeros(0, np.uint8), *stream])).tobytes()
    head = zlib.compress(json.dumps(header, separators=(",", ":")).encode(), 9)
    file = b"".join([_LENGTH.pack(len(head)), head, *content, packed])
    processes.by_main(lambda: processes.write(path, file))
    return FileSize(values + len(packed), places, len(file))


def read(path: Path) -> Leaves:
    """The leaves of a file, by their names, on the host."""
    file = path.read_bytes()
    place = _LENGTH.size + _LENGTH.unpack_from(file)[0]
    header = json.loads(zlib.decompress(file[_LENGTH.size : place]))
    end = place + sum(sum(lengths) for *_, lengths in header)
    stream = np.unpackbits(np.frombuffer(file[end:], np.uint8))
    leaves = {}
    for name, shape, how, kind, lengths in header:
        where, kept = (file[place:][: lengths[0]], file[place + lengths[0] :][: lengths[1]])
        place += sum(lengths)
        keep = _kept(kind, where, shape)
        if isinstance(how, list):
            count = int(keep.sum()) * how[0]
            codes, stream = np.packbits(stream[:count]), stream[count:]
            leaves[name] = _from_codes(codes, keep, *how)
        else:
            leaves[name] = np.zeros(shape, how)
            leaves[name][keep] = np.frombuffer(kept, how)
    return leaves


def with_leaves(network: Network, leaves: Leaves) -> Network:
    """The network with the leaves of a file, laid out like its own."""

    def of(path, leaf):
        found = leaves.get(leaf_name(path))
        return leaf if found is None else jax.device_put(found.astype(leaf.dtype), leaf.sharding)

    both = jax.tree_util.tree_map_with_path(of, network.parameters())
    return network._replace(weights=both["weights"], rest=both["rest"])


def _flat(network: Network) -> tuple[Leaves, Leaves, Leaves]:
    """Leaves, masks and grids by name; the state of random numbers isn't written."""
    is_grid = lambda x: isinstance(x, jp.Grid)

    def named(tree):
        paths = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_grid)
        return {leaf_name(path): leaf for path, leaf in paths}

    random = lambda leaf: jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    leaves = {
        name: np.asarray(on_host(leaf))
        for name, leaf in named(network.parameters()).items()
        if not random(leaf)
    }
    masks, grids = named({"weights": network.mask}), named({"weights": network.grids})
    kept = {name: np.asarray(on_host(masks[name])) if name in masks else None for name in leaves}
    return leaves, kept, {name: grids.get(name) for name in leaves}


def _from_codes(codes: np.ndarray, keep: np.ndarray, bits: int, step: float) -> np.ndarray:
    grid = jp.Grid(jnp.int32(bits), jnp.float32(step))
    return np.asarray(jp.unpack_quantized(np.zeros(keep.shape, np.float32), keep, grid, codes))


def _places(keep: np.ndarray) -> tuple[str, bytes]:
    """The smallest way to say which weights are kept, and its bytes."""
    if keep.all():
        return "all", b""
    found = {"bits": np.packbits(keep).tobytes(), "gaps": _gaps(keep)}
    deflated = {kind: _deflated(plain) for kind, plain in found.items()}
    return min(deflated.items(), key=lambda item: len(item[1]))


def _kept(kind: str, where: bytes, shape: list[int]) -> np.ndarray:
    """The mask that `_places` described."""
    if kind == "all":
        return np.ones(shape, bool)
    plain, size = np.frombuffer(zlib.decompress(where), np.uint8), int(np.prod(shape))
    if kind == "bits":
        return np.unpackbits(plain, count=size).astype(bool).reshape(shape)
    keep = np.zeros(size, bool)
    ends = np.cumsum(plain, dtype=np.int64) + np.cumsum(plain < _MOST) - 1
    keep[ends[plain < _MOST]] = True
    return keep.reshape(shape)


def _gaps(keep: np.ndarray) -> bytes:
    """How many pruned weights lie before each kept one: a byte, or several from 255 on."""
    gaps = np.diff(np.flatnonzero(keep), prepend=-1) - 1
    ends = np.cumsum(gaps // _MOST + 1)
    plain = np.full(ends[-1] if len(ends) else 0, _MOST, np.uint8)
    plain[ends - 1] = gaps % _MOST
    return plain.tobytes()


def _deflated(plain: bytes) -> bytes:
    """By Huffman codes alone where that is smaller: gaps repeat, but not in sequences."""
    strategies = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY)
    compressors = [zlib.compressobj(9, zlib.DEFLATED, 15, 9, each) for each in strategies]
    return min((each.compress(plain) + each.flush() for each in compressors), key=len)
