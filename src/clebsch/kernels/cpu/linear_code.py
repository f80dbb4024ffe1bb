"""The kernels of linear maps over channels: small matrix products that gather and scatter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from typing import NamedTuple

from llvmlite import ir

from clebsch.kernels.cpu import machine
from clebsch.kernels.cpu.emit import Emitter, Index
from clebsch.kernels.cpu.tile_code import Tile, most_rows

#: Rows, pairs of atom and component, that all chunks of channels work on, one after the other:
#: their features stay in the second-level cache, and there are enough to be worth reading weights.
ROWS = 192


class Block(NamedTuple):
    """One irrep (and copy) of a map: component m of it goes from

    ``inputs[start + m step : start + m step + copies]`` through ``copies`` matrices, the first of
    which is ``matrix``, to ``out[out_start + m out_step]``.
    """

    dim: int
    start: int
    step: int
    copies: int
    matrix: int
    out_start: int
    out_step: int


@dataclass(frozen=True)
class LinearSpec(machine.Channels):
    """What a kernel is compiled for.

    Attributes:
        blocks: which components go where.
        n_inputs: input components.
        n_outputs: output components.
        n_matrices: weights of one species, in units of [K, K].
    """

    blocks: tuple[Block, ...]
    n_inputs: int
    n_outputs: int
    n_matrices: int


def write_map(spec: LinearSpec, name: str) -> str:
    """out[n, block] = inputs[n, its components] weights of the species of n.

    Arguments: order, species_ptr, inputs [N, C, K], weights [S, chunk, rows, channel], blocks
    [number, 7], out [N, O, K], work; start and stop, a range of chunks of channels; n_species.

    Rows of the products are pairs of atom and component, taken in tiles.
    """
    pointers = ("order", "species_ptr", "inputs", "weights", "blocks", "out", "work")
    e = Emitter(name, pointers, ("start", "stop", "n_species"), spec.bits)
    tile, rest = (12, 4) if machine.many_registers() else (6, 3)
    n_chunks, length = spec.n_chunks, spec.n_matrices * spec.channels
    for chunk, kind, atoms, block in _walk(e, spec):
        panel = e.times(e.plus(e.times(kind, n_chunks), chunk), length * spec.chunk)
        right = e.at(e["weights"], panel, e.times(block.matrix, spec.channels * spec.chunk))
        for start, n_rows in _row_tiles(e, e.times(atoms.number, block.dim), tile, rest):
            _map_tile(e, spec, block, chunk, atoms, start, n_rows, right)
    return e.finish(0)


def write_weight(spec: LinearSpec, name: str) -> str:
    """The derivative by weights: sums over atoms and components of inputs times cotangents.

    Arguments: order, species_ptr, inputs [N, C, K], cotangent [N, O, K], blocks [number, 7],
    d_weights [S, rows, K], which is added to, work; start and stop, a range of chunks of channels;
    n_species.
    """
    pointers = ("order", "species_ptr", "inputs", "cotangent", "blocks", "d_weights", "work")
    e = Emitter(name, pointers, ("start", "stop", "n_species"), spec.bits)
    most = most_rows()
    rest = gcd(most, spec.channels)
    for chunk, kind, atoms, block in _walk(e, spec):
        for row, n_rows in _row_tiles(e, e.times(block.copies, spec.channels), most, rest):
            _weight_tile(e, spec, block, chunk, kind, atoms, row, n_rows)
    return e.finish(0)


def _row_tiles(e: Emitter, n_rows: Index, most: int, rest: int) -> Iterator[tuple[ir.Value, int]]:
    """First row and number of rows of every tile: ``most``, and of what is left over ``rest``."""
    whole = e.minus(n_rows, e.remainder(n_rows, most))
    for size, begin, end in ((most, 0, whole), (rest, whole, n_rows)):
        with e.loop(begin, end, size) as row:
            yield row, size


class _Atoms(NamedTuple):
    """Some atoms of a species: consecutive places in the order."""

    first: ir.Value
    number: ir.Value


def _walk(e: Emitter, spec: LinearSpec) -> Iterator[tuple[ir.Value, ir.Value, _Atoms, Block]]:
    """(chunk of channels, species, its atoms, block); all chunks for some atoms before the next."""
    with e.loop(0, e["n_species"]) as kind, e.loop(0, len(spec.blocks)) as number:
        field = e.times(number, len(Block._fields))
        block = Block(
            *(e.integer_at(e["blocks"], e.plus(field, k)) for k in range(len(Block._fields)))
        )
        first = e.integer_at(e["species_ptr"], kind)
        n_atoms = e.minus(e.integer_at(e["species_ptr"], e.plus(kind, 1)), first)
        at_once, _ = e.quotient(ROWS, block.dim)
        n_parts, _ = e.quotient(e.plus(n_atoms, e.minus(at_once, 1)), at_once)
        with e.loop(0, n_parts) as part, e.loop(e["start"], e["stop"]) as chunk:
            begin = e.times(part, at_once)
            some = e.smaller(at_once, e.minus(n_atoms, begin))
            yield chunk, kind, _Atoms(e.plus(first, begin), some), block


def _components(
    e: Emitter, spec: LinearSpec, block: Block, atoms: _Atoms, which: ir.Value, m: ir.Value
) -> tuple[Index, Index]:
    """Rows of [N C, K] and [N O, K] where component m of an atom comes from and goes to."""
    atom = e.integer_at(e["order"], e.plus(atoms.first, which))
    source = e.plus(block.start, e.times(m, block.step))
    result = e.plus(block.out_start, e.times(m, block.out_step))
    return (
        e.plus(source, e.times(atom, spec.n_inputs)),
        e.plus(result, e.times(atom, spec.n_outputs)),
    )


def _map_tile(  # type: ignore[no-untyped-def]
    e, spec, block, chunk, atoms, start, n_rows, right
) -> None:
    """Rows start.. of the product of a block and some atoms; rows beyond the last repeat it."""
    left, targets = [], []
    last = e.minus(e.times(atoms.number, block.dim), 1)
    for r in range(n_rows):
        which, m = e.quotient(e.smaller(e.plus(start, r), last), block.dim)
        source, result = _components(e, spec, block, atoms, which, m)
        left.append(e.at(e["inputs"], e.times(source, spec.channels)))
        place = e.plus(e.times(result, spec.channels), e.times(chunk, spec.chunk))
        targets.append(e.at(e["out"], place))
    tile = Tile(e, n_rows, spec.vectors, spec.lanes)
    tile.clear()
    with e.loop(0, e.times(block.copies, spec.channels)) as i:
        tile.add([e.at(address, i) for address in left], e.at(right, e.times(i, spec.chunk)))
    tile.store_rows(targets)


def _weight_tile(  # type: ignore[no-untyped-def]
    e, spec, block, chunk, kind, atoms, row, n_rows
) -> None:
    """Rows row.. of the derivative by one block's weights, from some atoms."""
    column = e.times(chunk, spec.chunk)
    matrix = e.plus(e.times(kind, spec.n_matrices), block.matrix)
    target = e.at(e["d_weights"], e.times(matrix, spec.channels**2), column)
    place = e.at(target, e.times(row, spec.channels))
    tile = Tile(e, n_rows, spec.vectors, spec.lanes)
    tile.load(place, spec.channels)
    with e.loop(0, atoms.number) as which, e.loop(0, block.dim) as m:
        source, result = _components(e, spec, block, atoms, which, m)
        left = e.at(e["inputs"], e.times(source, spec.channels), row)
        right = e.at(e["cotangent"], e.times(result, spec.channels), column)
        tile.add([e.at(left, r) for r in range(n_rows)], right)
    tile.store(place, spec.channels)
