"""What tensor cores do to a model's forces, found without a GPU: factors are rounded as there.

    python scripts/rounding_error.py MODEL STRUCTURES [--count 50] [--bits 11,8]

Matrix products that Clebsch gives to tensor cores under TF32 (radial networks, linear maps,
readouts, and their derivatives) round their factors to 11 bits, to nearest with ties away from
zero, and sum in float32; everything else is float32. Only the order of sums differs from a GPU.
With 8 bits the same products have factors of bfloat16 (but for what is done with ties). Printed are
differences of force components to the same model in float64, and to labels if there are any.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import clebsch
from clebsch.data.frame import Frame
from clebsch.data.read import LabelKeys, read_frames
from clebsch.kernels.backend import Kernels
from clebsch.kernels.dispatch import load_backend

_PRODUCTS = (torch.Tensor.__matmul__, torch.Tensor.matmul, torch.matmul)


def _rounded(values: Tensor, bits: int) -> Tensor:
    """float32 numbers with so many bits."""
    lost = 24 - bits
    integers = values.contiguous().view(torch.int32)
    return ((integers + (1 << lost - 1)) >> lost << lost).view(torch.float32)


class _Product(torch.autograd.Function):
    """A product of rounded factors; so are those of its derivatives."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.bits = bits
        return _rounded(a, bits) @ _rounded(b, bits)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor, None]:
        a, b = (_rounded(saved, ctx.bits) for saved in ctx.saved_tensors)
        cotangent = _rounded(cotangent, ctx.bits)
        return cotangent @ b.mT, a.mT @ cotangent, None


class _Rounding(TorchFunctionMode):
    """Every product is a ``_Product`` while the context lasts, but inside of ``plain``."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.is_on = True

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if self.is_on and function in _PRODUCTS and args[1].dim() > 1:
            return _Product.apply(*args, self.bits)
        return function(*args, **(kwargs or {}))

    def plain(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """What a GPU computes in a kernel of its own."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.is_on = False
            try:
                return function(*args, **kwargs)
            finally:
                self.is_on = True

        return wrapped

    def kernels(self) -> Kernels:
        """The reference, with products rounded where tensor cores would do them."""
        reference = load_backend("reference")
        convolve = self.plain(reference.convolve)

        def convolve_radial(plan: Any, hidden: Tensor, last: Tensor, *rest: Any) -> Tensor:
            weights = (hidden @ last.flatten(1)).unflatten(1, last.shape[1:])
            result: Tensor = convolve(plan, weights, *rest)
            return result

        own = {"name", "linear"}
        others = [one.name for one in fields(reference) if one.name not in own]
        plain = {name: self.plain(getattr(reference, name)) for name in others}
        return replace(reference, **{**plain, "convolve_radial": convolve_radial})


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("structures")
    parser.add_argument("--count", type=int, default=50, help="structures, evenly spread")
    parser.add_argument("--bits", default="11,8", help="of factors: 11 are TF32, 8 bfloat16")
    options = parser.parse_args()
    frames = read_frames([options.structures], LabelKeys(), pbc="none")
    frames = frames[:: max(1, len(frames) // options.count)][: options.count]
    exact = _forces(options.model, torch.float64, frames)
    found = {"float64": exact, "float32": _forces(options.model, torch.float32, frames)}
    for bits in map(int, options.bits.split(",")):
        found[f"{bits} bits"] = _forces(options.model, torch.float32, frames, bits)
    print(f"{len(frames)} structures, {len(exact)} atoms; meV/A")
    labels = [frame.forces for frame in frames]
    for name, values in found.items():
        off = 1000 * (values - exact)
        told = f"{name}: to float64 RMS {_rms(off):.4f}, largest {off.abs().max():.4f}"
        if all(one is not None for one in labels):
            expected = torch.cat([torch.as_tensor(one) for one in labels])
            told += f"; to labels RMS {1000 * _rms(values - expected):.4f}"
        print(told)


def _forces(
    model: str, dtype: torch.dtype, frames: Sequence[Frame], bits: int | None = None
) -> Tensor:
    """Forces on the atoms of all structures, with the factors of products rounded to some bits."""
    potential = clebsch.load(model, dtype=dtype)
    if bits is None:
        return torch.cat([potential(potential.graph(frame)).forces for frame in frames])
    rounding = _Rounding(bits)
    potential.compute_with(rounding.kernels())
    with rounding:
        return torch.cat([potential(potential.graph(frame)).forces for frame in frames])


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())


if __name__ == "__main__":
    main()
