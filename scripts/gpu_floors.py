"""Count operations and bytes of MACE's kernels, and print how fast an H200 could run them at best.

    python scripts/gpu_floors.py

Energies and forces in float32: the forward pass and first derivatives by edges and, behind the
first layer, by nodes. Multiply-adds are those of ``clebsch.benchmarks.rates``. Bytes are those of
every tensor that a kernel reads or writes, once for each kernel: what is gathered several times is
taken to come out of the cache. ``stored``: path weights lie in memory, [E, P, K]; ``fused``: they
are made inside the convolution from the radial network's last hidden layer, [E, F].
"""

from __future__ import annotations

from dataclasses import dataclass

from clebsch.algebra import spherical_irreps
from clebsch.kernels.plan import ConvolutionPlan, contraction_plan, convolution_plan

#: NVIDIA H200 SXM (data sheet): float32 67 TFLOP/s without tensor cores, two to a multiply-add;
#: memory 4.8 TB/s.
MULTIPLY_ADDS, BANDWIDTH = 33.5e12, 4.8e12
#: Width of the radial network's last hidden layer; highest degree of harmonics; bytes of a number.
F, L_MAX, BYTES = 64, 3, 4


@dataclass(frozen=True)
class System:
    """A structure, and the hidden features of the model that is run on it."""

    name: str
    atoms: int
    edges: int
    channels: int
    degree: int


SYSTEMS = (
    System("3BPA, 27 atoms", 27, 464, 256, 2),
    System("silicon, 1000 atoms", 1000, 28_000, 128, 1),
    System("silicon, 10 000 atoms", 10_000, 280_000, 128, 1),
    System("any, 3000 atoms", 3000, 160_000, 128, 2),
)


@dataclass(frozen=True)
class Count:
    """Multiply-adds, and numbers read or written.

    Attributes:
        operations: multiply-adds.
        stored: numbers, where path weights lie in memory.
        fused: numbers, where they are made inside the convolution.
    """

    operations: float = 0
    stored: float = 0
    fused: float = 0

    def __add__(self, other: Count) -> Count:
        return Count(
            self.operations + other.operations,
            self.stored + other.stored,
            self.fused + other.fused,
        )

    @property
    def arithmetic(self) -> float:
        """Seconds of the multiply-adds."""
        return self.operations / MULTIPLY_ADDS

    def memory(self, fused: bool) -> float:
        """Seconds of reading and writing."""
        return BYTES * (self.fused if fused else self.stored) / BANDWIDTH


def convolution(plan: ConvolutionPlan, system: System, by_nodes: bool) -> tuple[Count, Count]:
    """The convolution, and the radial network's last layer."""
    n, e, k = system.atoms, system.edges, system.channels
    weights, hidden = e * plan.n_paths * k, e * F
    harmonics = e * plan.harmonic_irreps.dim
    nodes, out = n * plan.node_irreps.dim * k, n * plan.out_dim * k
    paths = (plan.node_irreps[p.node].dim * (plan.out_irreps[p.out].dim + 1) for p in plan.paths)
    useful = e * k * sum(paths)
    # forward; derivatives by edges, which write one for each weight and harmonic; by nodes
    passes, of_weights = 3, 3
    others = (harmonics + nodes + out) + (2 * harmonics + nodes + out)
    if by_nodes:
        passes, of_weights = 4, 4
        others += harmonics + out + nodes
    product = Count(passes * useful, of_weights * weights + others, of_weights * hidden + others)
    # stored: weights are written, and their derivatives read; the last layer's own are few
    layer = Count(3 * weights * F, 2 * (weights + hidden), 0)
    return product, layer


def counts(system: System) -> dict[str, Count]:
    """What the parts of a MACE of two layers count, energies and forces."""
    n, k, harmonics = system.atoms, system.channels, spherical_irreps(L_MAX)
    hidden, scalars = spherical_irreps(system.degree), spherical_irreps(0)
    found = {name: Count() for name in ("convolution", "radial layer", "product", "linear maps")}
    for layer, (inputs, outputs) in enumerate(((scalars, hidden), (hidden, scalars))):
        plan = convolution_plan(inputs, harmonics, harmonics)
        product, last = convolution(plan, system, by_nodes=layer > 0)
        found["convolution"] += product
        found["radial layer"] += last
        basis = contraction_plan(harmonics, outputs, 3)
        terms = sum(part.n_component_terms for row in basis.bases for part in row)
        rows = n * k * (3 * harmonics.dim + 2 * outputs.dim)
        found["product"] += Count(6 * terms * n * k, rows, rows)
        # before the convolution, after it (paths are summed too), after the product; twice each
        components = inputs.dim + plan.out_dim + outputs.dim
        rows = 2 * n * k * (2 * inputs.dim + plan.out_dim + harmonics.dim + 2 * outputs.dim)
        found["linear maps"] += Count(2 * n * k * k * components, rows, rows)
    return found


def floor(parts: dict[str, Count], fused: bool) -> float:
    """Seconds: the larger of arithmetic and memory of each part, one part after the other."""
    listed = dict(parts)
    if fused:
        listed["convolution"] += listed.pop("radial layer")
    return sum(max(part.arithmetic, part.memory(fused)) for part in listed.values())


def main() -> None:
    """Print a table, in microseconds."""
    columns = ("system", "hidden", "convolution", "radial layer", "product", "linear maps")
    columns += ("memory, stored", "memory, fused", "floor, stored", "floor, fused")
    print("| " + " | ".join(columns) + " |")
    print("| " + " | ".join("---" for _ in columns) + " |")
    for system in SYSTEMS:
        hidden = "+".join(f"{irrep}" for irrep in spherical_irreps(system.degree))
        parts = counts(system)
        numbers = [part.arithmetic for part in parts.values()]
        numbers += [sum(part.memory(fused) for part in parts.values()) for fused in (False, True)]
        numbers += [floor(parts, fused) for fused in (False, True)]
        cells = [f"{system.name}, {system.edges} edges", f"{system.channels}x{hidden}"]
        cells += [f"{1e6 * seconds:.0f}" for seconds in numbers]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
