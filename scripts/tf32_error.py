"""What TF32 does to a model's forces, found without a GPU: products with factors rounded as there.

    python scripts/tf32_error.py MODEL STRUCTURES [--count 50]

Matrix products that Clebsch gives to tensor cores under TF32 (radial networks, linear maps,
readouts, and their derivatives) round their factors to 11 bits, to nearest with ties away from
zero, and sum in float32; everything else is float32. Only the order of sums differs from a GPU.
Printed are differences of force components to the same model in float64, and to labels if there
are any.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import clebsch
from clebsch.data.read import LabelKeys, read_frames
from clebsch.kernels.backend import Kernels
from clebsch.kernels.dispatch import load_backend

_PRODUCTS = (torch.Tensor.__matmul__, torch.Tensor.matmul, torch.matmul)


def _rounded(values: Tensor) -> Tensor:
    """float32 numbers with 11 bits."""
    bits = values.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


class _Product(torch.autograd.Function):
    """A product of rounded factors; so are those of its derivatives."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return _rounded(a) @ _rounded(b)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        a, b = map(_rounded, ctx.saved_tensors)
        cotangent = _rounded(cotangent)
        return cotangent @ b.mT, a.mT @ cotangent


class _Rounding(TorchFunctionMode):
    """Every product is a ``_Product`` while the context lasts, but inside of ``plain``."""

    def __init__(self) -> None:
        super().__init__()
        self.is_on = True

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if self.is_on and function in _PRODUCTS and args[1].dim() > 1:
            return _Product.apply(*args)
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
    options = parser.parse_args()
    frames = read_frames([options.structures], LabelKeys(), pbc="none")
    frames = frames[:: max(1, len(frames) // options.count)][: options.count]
    exact = clebsch.load(options.model, dtype=torch.float64)
    single = clebsch.load(options.model, dtype=torch.float32)
    rounding = _Rounding()
    rounded = clebsch.load(options.model, dtype=torch.float32)
    rounded._install(rounding.kernels())
    forces: dict[str, list[Tensor]] = {"float64": [], "float32": [], "TF32": []}
    for frame in frames:
        for name, potential in (("float64", exact), ("float32", single)):
            forces[name].append(potential(potential.graph(frame)).forces)
        with rounding:
            forces["TF32"].append(rounded(rounded.graph(frame)).forces)
    found = {name: torch.cat(parts) for name, parts in forces.items()}
    print(f"{len(frames)} structures, {len(found['float64'])} atoms; meV/A")
    labels = [frame.forces for frame in frames]
    for name, values in found.items():
        off = 1000 * (values - found["float64"])
        told = f"{name}: to float64 RMS {_rms(off):.4f}, largest {off.abs().max():.4f}"
        if all(one is not None for one in labels):
            expected = torch.cat([torch.as_tensor(one) for one in labels])
            told += f"; to labels RMS {1000 * _rms(values - expected):.4f}"
        print(told)


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())


if __name__ == "__main__":
    main()
