"""Linear maps over channels as torch operators, with any number of derivatives.

Maps and their transposes are one operator with different blocks of components; another one gives
the derivative by weights. Both are bilinear, and each other's derivatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from clebsch.kernels.cpu import machine, threads
from clebsch.kernels.cpu.linear_code import Block, LinearSpec, write_map, write_weight
from clebsch.kernels.cpu.operators import operators
from clebsch.kernels.operators import is_needed, save_inputs
from clebsch.kernels.species import by_species

_Sizes = Sequence[int]


def linear(
    features: Tensor, weight: Tensor, species: Tensor | None, dims: _Sizes, copies: _Sizes
) -> Tensor:
    """See ``reference.linear``."""
    order = ptr = None
    if species is not None:
        order, ptr = by_species(species, len(weight))
    matrices = weight.unflatten(1, (-1, weight.shape[2]))
    out: Tensor = torch.ops.clebsch.linear(
        features, _packed(matrices), order, ptr, dims, copies, False
    )
    return out


# --- operators: weights are packed [species, chunk, row, channel]; maps or their transposes ---


def _linear(
    inputs: Tensor,
    packed: Tensor,
    order: Tensor | None,
    ptr: Tensor | None,
    dims: _Sizes,
    copies: _Sizes,
    transposed: bool,
) -> Tensor:
    n_atoms, _, channels = inputs.shape
    spec = _spec(tuple(dims), tuple(copies), transposed, channels, inputs.dtype.itemsize * 8)
    out = inputs.new_empty((n_atoms, spec.n_outputs, channels))
    _run("linear", spec, (order, ptr, inputs, packed), out, len(packed))
    return out


def _run(
    name: str,
    spec: LinearSpec,
    inputs: tuple[Tensor | None, Tensor | None, Tensor, Tensor],
    out: Tensor,
    n_species: int,
) -> None:
    order, ptr, *tensors = inputs
    n_atoms = len(inputs[2])
    if order is None or ptr is None:
        order, ptr = _all_atoms(n_atoms)
    held = (order, ptr, *(tensor.contiguous() for tensor in tensors), _table(spec), out)
    kernel = _kernel(name, spec)
    cost = n_atoms * spec.channels**2 * sum(block.dim * block.copies for block in spec.blocks)
    ranges = threads.shares(spec.n_chunks, cost)
    threads.launch(kernel, out.dtype, ranges, lambda part: held, n_species)


def _linear_fake(inputs: Tensor, packed: Tensor, *others: Any) -> Tensor:
    *_, dims, copies, transposed = others
    counts = copies if transposed else [1] * len(dims)
    n_outputs = sum(dim * n for dim, n in zip(dims, counts, strict=True))
    return inputs.new_empty((inputs.shape[0], n_outputs, inputs.shape[2]))


def _weight(
    inputs: Tensor,
    cotangent: Tensor,
    order: Tensor | None,
    ptr: Tensor | None,
    n_species: int,
    dims: _Sizes,
    copies: _Sizes,
    transposed: bool,
) -> Tensor:
    """The derivative by the weights, [species, matrix, K, K]."""
    channels = inputs.shape[2]
    spec = _spec(tuple(dims), tuple(copies), transposed, channels, inputs.dtype.itemsize * 8)
    out = inputs.new_zeros((n_species, spec.n_matrices, channels, channels))
    _run("linear_weight", spec, (order, ptr, inputs, cotangent), out, n_species)
    return out


def _weight_fake(inputs: Tensor, cotangent: Tensor, *others: Any) -> Tensor:
    *_, n_species, _, copies, _ = others
    channels = inputs.shape[2]
    return inputs.new_empty((n_species, sum(copies), channels, channels))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    save_inputs(ctx, inputs[:4], 0)
    ctx.sizes = inputs[4:]


def _linear_backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
    inputs, packed, order, ptr = ctx.saved_tensors
    dims, copies, transposed = ctx.sizes
    d_inputs = d_packed = None
    if is_needed(ctx, 0):
        d_inputs = _transposed(cotangent, packed, order, ptr, ctx.sizes)
    if is_needed(ctx, 1):
        d_packed = _packed(
            torch.ops.clebsch.linear_weight(
                inputs, cotangent, order, ptr, len(packed), dims, copies, transposed
            )
        )
    return d_inputs, d_packed, None, None, None, None, None


def _weight_backward(ctx: Any, t_matrices: Tensor) -> tuple[Any, ...]:
    inputs, cotangent, order, ptr = ctx.saved_tensors
    _, *sizes = ctx.sizes
    packed = _packed(t_matrices)
    d_inputs = d_cotangent = None
    if is_needed(ctx, 0):
        d_inputs = _transposed(cotangent, packed, order, ptr, sizes)
    if is_needed(ctx, 1):
        d_cotangent = torch.ops.clebsch.linear(inputs, packed, order, ptr, *sizes)
    return d_inputs, d_cotangent, None, None, None, None, None, None


def _transposed(
    cotangent: Tensor, packed: Tensor, order: Tensor | None, ptr: Tensor | None, sizes: Any
) -> Tensor:
    """The transposed map of what goes the other way."""
    dims, copies, transposed = sizes
    channels = cotangent.shape[2]
    matrices = packed.transpose(1, 2).flatten(2).unflatten(1, (-1, channels))
    out: Tensor = torch.ops.clebsch.linear(
        cotangent, _packed(matrices.transpose(2, 3)), order, ptr, dims, copies, not transposed
    )
    return out


def _packed(matrices: Tensor) -> Tensor:
    """[species, matrix, K, K] as [species, chunk, row, channel]."""
    channels = matrices.shape[3]
    chunk = machine.Channels(channels, matrices.dtype.itemsize * 8).chunk
    return matrices.unflatten(3, (-1, chunk)).flatten(1, 2).transpose(1, 2).contiguous()


_SIZES = "Tensor? order, Tensor? ptr"
operators.define(
    f"linear(Tensor inputs, Tensor packed, {_SIZES}, int[] dims, int[] copies, bool transposed) "
    "-> Tensor",
    _linear,
    _linear_fake,
)
operators.define(
    f"linear_weight(Tensor inputs, Tensor cotangent, {_SIZES}, int n_species, int[] dims, "
    "int[] copies, bool transposed) -> Tensor",
    _weight,
    _weight_fake,
)
operators.register_autograd("linear", _setup, _linear_backward)
operators.register_autograd("linear_weight", _setup, _weight_backward)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _all_atoms(n_atoms: int) -> tuple[Tensor, Tensor]:
    """Order and bounds of a single species."""
    return torch.arange(n_atoms), torch.tensor([0, n_atoms])


@lru_cache(maxsize=256)
def _spec(
    dims: tuple[int, ...], copies: tuple[int, ...], transposed: bool, channels: int, bits: int
) -> LinearSpec:
    n_copies = sum(dim * n for dim, n in zip(dims, copies, strict=True))
    sizes = (sum(dims), n_copies) if transposed else (n_copies, sum(dims))
    return LinearSpec(channels, bits, _blocks(dims, copies, transposed), *sizes, sum(copies))


@lru_cache(maxsize=256)
def _blocks(dims: tuple[int, ...], copies: tuple[int, ...], transposed: bool) -> tuple[Block, ...]:
    blocks, copied, plain, matrix = [], 0, 0, 0
    for dim, n in zip(dims, copies, strict=True):
        if not transposed:
            blocks.append(Block(dim, copied, n, n, matrix, plain, 1))
        else:
            blocks += [Block(dim, plain, 1, 1, matrix + p, copied + p, n) for p in range(n)]
        copied, plain, matrix = copied + dim * n, plain + dim, matrix + n
    return tuple(blocks)


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _table(spec: LinearSpec) -> Tensor:
    return torch.tensor(spec.blocks, dtype=torch.int64).reshape(-1, len(Block._fields))


@lru_cache(maxsize=256)
def _kernel(name: str, spec: LinearSpec) -> machine.Kernel:
    sizes = (len(spec.blocks), spec.n_inputs, spec.n_outputs, spec.n_matrices, spec.channels)
    key = f"{sizes}|{spec.bits}"
    write = write_map if name == "linear" else write_weight
    return machine.kernel(name, 7, 3, key, lambda: write(spec, name))
