"""The kernels of linear maps over channels: small matrix products that gather and scatter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from clebsch.kernels.cpu import machine
from clebsch.kernels.cpu.emit import Emitter

#: Atoms whose features are in the cache together while weights' derivatives are summed.
ATOMS = 64


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
    tile = 12 if machine.many_registers() else 4
    n_chunks, length = spec.n_chunks, spec.n_matrices * spec.channels
    for chunk, kind, first, n_atoms, block in _blocks_of_species(e, spec):
        panel = e.times(e.plus(e.times(kind, n_chunks), chunk), length * spec.chunk)
        right = e.at(e["weights"], panel, e.times(block.matrix, spec.channels * spec.chunk))
        last = e.times(n_atoms, block.dim)
        whole = e.minus(last, e.remainder(last, tile))
        for rows, begin, end in ((tile, 0, whole), (4, whole, last)):
            with e.loop(begin, end, rows) as start:
                _tile(e, spec, block, chunk, first, last, start, rows, right)
    return e.finish(0)


def write_weight(spec: LinearSpec, name: str) -> str:
    """The derivative by weights: sums over atoms and components of inputs times cotangents.

    Arguments: order, species_ptr, inputs [N, C, K], cotangent [N, O, K], blocks [number, 7],
    d_weights [S, rows, K], which is added to, work; start and stop, a range of chunks of channels;
    n_species.

    Atoms are taken ``ATOMS`` at a time, whose features stay in the cache while all tiles of the
    weights pass: with the edges of a network on edges there are thousands.
    """
    pointers = ("order", "species_ptr", "inputs", "cotangent", "blocks", "d_weights", "work")
    e = Emitter(name, pointers, ("start", "stop", "n_species"), spec.bits)
    largest = 8 if machine.many_registers() else 4
    tile = next(size for size in (largest, 4, 2, 1) if spec.channels % size == 0)
    for chunk, kind, first, n_atoms, block in _blocks_of_species(e, spec):
        column = e.times(chunk, spec.chunk)
        matrix = e.plus(e.times(kind, spec.n_matrices), block.matrix)
        target = e.at(e["d_weights"], e.times(matrix, spec.channels**2), column)
        rows = e.times(block.copies, spec.channels)
        with e.loop(0, n_atoms, ATOMS) as begin, e.loop(0, rows, tile) as row:
            end = e.smaller(e.plus(begin, ATOMS), n_atoms)
            places = [
                e.at(target, e.times(e.plus(row, r), spec.channels), v * spec.lanes)
                for r, v in np.ndindex(tile, spec.vectors)
            ]
            sums = [[e.variable(spec.lanes) for _ in range(spec.vectors)] for _ in range(tile)]
            for (r, v), place in zip(np.ndindex(tile, spec.vectors), places, strict=True):
                e.put(e.load(place, spec.lanes), sums[r][v])
            with e.loop(begin, end) as which, e.loop(0, block.dim) as m:
                atom = e.integer_at(e["order"], e.plus(first, which))
                component = e.plus(block.start, e.times(m, block.step))
                component = e.plus(component, e.times(atom, spec.n_inputs))
                left = e.at(e["inputs"], e.times(component, spec.channels), row)
                component = e.plus(block.out_start, e.times(m, block.out_step))
                component = e.plus(component, e.times(atom, spec.n_outputs))
                right = e.at(e["cotangent"], e.times(component, spec.channels), column)
                values = [
                    e.load(e.at(right, v * spec.lanes), spec.lanes) for v in range(spec.vectors)
                ]
                for r in range(tile):
                    number = e.spread(e.at(left, r), spec.lanes)
                    for v, value in enumerate(values):
                        total = e.get(sums[r][v], spec.lanes)
                        e.put(e.fma(number, value, total), sums[r][v])
            for (r, v), place in zip(np.ndindex(tile, spec.vectors), places, strict=True):
                e.store(e.get(sums[r][v], spec.lanes), place)
    return e.finish(0)


def _blocks_of_species(e: Emitter, spec: LinearSpec):  # type: ignore[no-untyped-def]
    """(chunk of channels, species, its first place in the order, its atoms, block)."""
    with (
        e.loop(e["start"], e["stop"]) as chunk,
        e.loop(0, e["n_species"]) as kind,
        e.loop(0, len(spec.blocks)) as number,
    ):
        first = e.integer_at(e["species_ptr"], kind)
        n_atoms = e.minus(e.integer_at(e["species_ptr"], e.plus(kind, 1)), first)
        field = e.times(number, len(Block._fields))
        block = Block(
            *(e.integer_at(e["blocks"], e.plus(field, k)) for k in range(len(Block._fields)))
        )
        yield chunk, kind, first, n_atoms, block


def _tile(e, spec, block, chunk, first, last, start, n_rows, right) -> None:  # type: ignore[no-untyped-def]
    """Rows start.. of the product of one block and species; rows beyond the last repeat it."""
    left, targets = [], []
    for r in range(n_rows):
        row = e.smaller(e.plus(start, r), e.minus(last, 1))
        which, m = e.quotient(row, block.dim)
        atom = e.integer_at(e["order"], e.plus(first, which))
        component = e.plus(block.start, e.times(m, block.step))
        component = e.plus(component, e.times(atom, spec.n_inputs))
        left.append(e.at(e["inputs"], e.times(component, spec.channels)))
        component = e.plus(block.out_start, e.times(m, block.out_step))
        component = e.plus(component, e.times(atom, spec.n_outputs))
        place = e.plus(e.times(component, spec.channels), e.times(chunk, spec.chunk))
        targets.append(e.at(e["out"], place))
    sums = _product(e, spec, left, right, e.times(block.copies, spec.channels))
    for target, values in zip(targets, sums, strict=True):
        for v, value in enumerate(values):
            e.store(value, e.at(target, v * spec.lanes))


def _product(e: Emitter, spec: LinearSpec, left: Sequence, right, inner) -> list[list]:  # type: ignore[no-untyped-def]
    """One row of sums for each address in ``left``."""
    sums = [[e.variable(spec.lanes) for _ in range(spec.vectors)] for _ in left]
    for r, v in np.ndindex(len(left), spec.vectors):
        e.put(e.zero(spec.lanes), sums[r][v])
    with e.loop(0, inner) as i:
        across = e.at(right, e.times(i, spec.chunk))
        values = [e.load(e.at(across, v * spec.lanes), spec.lanes) for v in range(spec.vectors)]
        for r, address in enumerate(left):
            number = e.spread(e.at(address, i), spec.lanes)
            for v, value in enumerate(values):
                e.put(e.fma(number, value, e.get(sums[r][v], spec.lanes)), sums[r][v])
    return [[e.get(variable, spec.lanes) for variable in row] for row in sums]
