"""Linear maps on GPUs: batched matrix products of torch over blocks of atoms of one species.

How many atoms a species has is never asked for, which would be waiting for the device: there are
as many blocks as there could be, and some are empty.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clebsch.kernels.gpu.rows import rearranged, rows_of_blocks
from clebsch.kernels.gpu.segments import blocks, kinds_of_blocks
from clebsch.kernels.species import by_species

#: Atoms of a block: few where atoms are few, and no more than fill a product.
FEWEST_ATOMS, MOST_ATOMS = 16, 128
#: Blocks that there are at least, once they hold more than the fewest atoms.
BLOCKS = 32


def linear(
    features: Tensor,
    weight: Tensor,
    species: Tensor | None,
    dims: Sequence[int],
    copies: Sequence[int],
) -> Tensor:
    """See ``reference.linear``."""
    if species is None:
        return _products(features[None], weight, dims, copies).squeeze(
            0
        )  # [0] would be a copy back
    n_atoms, n_species = features.shape[0], weight.shape[0]
    if n_atoms == 0:
        return _products(features.expand(n_species, -1, -1, -1), weight, dims, copies).flatten(0, 1)
    size = atoms_of_block(n_atoms)
    order, ptr = by_species(species, n_species)
    bounds, block_ptr = blocks(ptr, n_atoms, size)
    number = torch.arange(bounds.shape[0] - 1, device=species.device)
    # Where atoms go: of sorted ones each stands behind the beginning of its block.
    place = bounds[:-1, None] + torch.arange(size, device=species.device)
    sorted_atom = order[place.clamp(max=n_atoms - 1)]
    index = torch.where(place < bounds[1:, None], sorted_atom, -1).flatten()
    sorted_place = torch.arange(n_atoms, device=species.device)
    block = torch.searchsorted(bounds, sorted_place, right=True) - 1
    back = (block * size + sorted_place - bounds[block])[torch.argsort(order)]
    of_blocks = rearranged(features, index, back).unflatten(0, (-1, size))  # [B, size, ., K]
    weights = rows_of_blocks(weight, kinds_of_blocks(block_ptr, number), block_ptr)
    mapped = _products(of_blocks, weights, dims, copies)
    return rearranged(mapped.flatten(0, 1), back, index)


def atoms_of_block(n_atoms: int) -> int:
    """Atoms of a block; a symbol where the number of atoms is one."""
    size: int = torch.sym_min(MOST_ATOMS, torch.sym_max(FEWEST_ATOMS, n_atoms // BLOCKS))
    return size


def _products(
    features: Tensor, weights: Tensor, dims: Sequence[int], copies: Sequence[int]
) -> Tensor:
    """Blocks of features [B, A, sum of dims x copies, K] by weights [B, sum of copies x K, K]."""
    n_blocks, n_atoms, _, channels = features.shape
    sizes = [dim * n for dim, n in zip(dims, copies, strict=True)]
    parts = zip(
        _split(features, sizes, dim=2),
        _split(weights, [n * channels for n in copies], dim=1),
        dims,
        copies,
        strict=True,
    )
    made = []
    for part, matrices, dim, n_copies in parts:
        rows = part.reshape(n_blocks, n_atoms * dim, n_copies * channels)
        made.append((rows @ matrices).view(n_blocks, n_atoms, dim, channels))
    return made[0] if len(made) == 1 else torch.cat(made, dim=2)


def _split(tensor: Tensor, sizes: Sequence[int], dim: int) -> Sequence[Tensor]:
    """Parts of a tensor; the derivative of taking one that is all of it would be a copy."""
    return tensor.split(sizes, dim) if len(sizes) > 1 else (tensor,)
