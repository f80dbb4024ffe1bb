"""The kernel of linear maps over channels: small matrix products, gathered and scattered in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from clebsch.kernels.cpu import machine
from clebsch.kernels.cpu.emit import Emitter

#: For every output component: the first input component, how many, and the first row of weights
#: in units of channels.
Blocks = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class LinearSpec:
    """What a kernel is compiled for.

    Attributes:
        blocks: where each output component comes from.
        n_inputs: input components.
        n_matrices: weights of one species, in units of [K, K].
        channels: K.
        bits: of the real type.
    """

    blocks: Blocks
    n_inputs: int
    n_matrices: int
    channels: int
    bits: int

    @cached_property
    def lanes(self) -> int:
        """Lanes of the vectors: the most that divide the number of channels."""
        lanes = machine.vector_bytes() * 8 // self.bits
        while self.channels % lanes:
            lanes //= 2
        return lanes

    @cached_property
    def vectors(self) -> int:
        """Vectors in a chunk of channels."""
        return 2 if self.channels % (2 * self.lanes) == 0 else 1

    @property
    def chunk(self) -> int:
        """Channels in a chunk."""
        return self.lanes * self.vectors


def write(spec: LinearSpec, name: str) -> str:
    """out[n, block] = inputs[n, its components] weights of the species of n.

    Arguments: order, species_ptr, inputs [N, C, K], weights [S, chunk, rows, channel], blocks
    [O, 3], out [N, O, K], work; start and stop, a range of chunks of channels; n_species.
    Atoms go in tiles of 8; those beyond a species' last repeat it.
    """
    pointers = ("order", "species_ptr", "inputs", "weights", "blocks", "out", "work")
    e = Emitter(name, pointers, ("start", "stop", "n_species"), spec.bits)
    tile = 12 if machine.many_registers() else 4
    n_chunks, n_rows = spec.channels // spec.chunk, spec.n_matrices * spec.channels
    with e.loop(e["start"], e["stop"]) as chunk, e.loop(0, e["n_species"]) as kind:
        panel = e.times(e.plus(e.times(kind, n_chunks), chunk), n_rows * spec.chunk)
        weights = e.at(e["weights"], panel)
        first = e.integer_at(e["species_ptr"], kind)
        last = e.integer_at(e["species_ptr"], e.plus(kind, 1))
        final = e.minus(last, 1)
        with e.loop(0, len(spec.blocks)) as output, e.loop(first, last, tile) as place:
            block = e.times(output, 3)
            start, count, row = (e.integer_at(e["blocks"], e.plus(block, k)) for k in range(3))
            atoms = [e.integer_at(e["order"], e.smaller(e.plus(place, r), final)) for r in range(tile)]
            left = [
                e.at(e["inputs"], e.times(e.plus(e.times(a, spec.n_inputs), start), spec.channels))
                for a in atoms
            ]
            right = e.at(weights, e.times(row, spec.channels * spec.chunk))
            sums = _product(e, spec, left, right, e.times(count, spec.channels))
            for atom, values in zip(atoms, sums, strict=True):
                component = e.plus(e.times(atom, len(spec.blocks)), output)
                target = e.at(
                    e["out"], e.times(component, spec.channels), e.times(chunk, spec.chunk)
                )
                for v, value in enumerate(values):
                    e.store(value, e.at(target, v * spec.lanes))
    return e.finish(0)


def _product(e: Emitter, spec: LinearSpec, left: Sequence, right, inner) -> list[list]:  # type: ignore[no-untyped-def, type-arg]
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
