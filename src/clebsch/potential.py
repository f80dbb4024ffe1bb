"""A potential: network, references and prior together; energies and all their derivatives.

Derivatives are taken here and nowhere else, with respect to edge vectors: one backward pass gives
forces and virial alike, and no strain is ever applied to a structure.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor, nn

from clebsch.agreement import check_backend
from clebsch.conventions import OUTPUTS
from clebsch.elements import unknown_element
from clebsch.errors import (
    BackendError,
    ClebschError,
    ConfigError,
    DataError,
    UnknownElementError,
    did_you_mean,
)
from clebsch.graph import AtomGraph, GraphScope, batch_graphs, edge_vectors
from clebsch.kernels.backend import Kernels
from clebsch.kernels.dispatch import best_backend, load_backend
from clebsch.models.config import ModelConfig
from clebsch.models.network import Network
from clebsch.neighbors import neighbor_graph, search_place
from clebsch.nn.contact import ContactRepulsion
from clebsch.nn.energy import EnergyHead
from clebsch.nn.floor import EnergyFloor
from clebsch.repeats import Repeats
from clebsch.replay import has_few_edges


class Structure(Protocol):
    """What a structure must offer: an ASE Atoms and a ``Frame`` both do."""

    @property
    def numbers(self) -> Any: ...  # noqa: D102
    @property
    def positions(self) -> Any: ...  # noqa: D102
    @property
    def cell(self) -> Any: ...  # noqa: D102
    @property
    def pbc(self) -> Any: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class Prediction:
    """What was asked for; everything else is None. Signs and units as in ``clebsch.conventions``.

    Attributes:
        energy: [n_frames] float64, eV.
        forces: [n_atoms, 3] float64, eV/Angstrom.
        virial: [n_frames, 3, 3] float64, eV.
        stress: [n_frames, 3, 3] float64, eV/Angstrom^3.
        site_energies: [n_atoms] float64, eV; they sum to the energies. Those of ghosts are 0.
        layer_energies: [n_atoms, 1 + n_layers] float64, eV: the terms of equation 13; column 0 is
            the reference with mean energy, repulsions and floor. They sum to the site energies.
        hessian: [3 n_atoms, 3 n_atoms] float64, eV/Angstrom^2, of a single structure.
    """

    energy: Tensor | None = None
    forces: Tensor | None = None
    virial: Tensor | None = None
    stress: Tensor | None = None
    site_energies: Tensor | None = None
    layer_energies: Tensor | None = None
    hessian: Tensor | None = None


class Potential(nn.Module):
    """Energies, forces, virials and stresses of structures.

    Attributes:
        config: the architecture's configuration.
        species: element symbols; an atom's species is an index into them.
        model: the network, from edge vectors to energies of each atom and layer.
        head: references, scale and mean energy.
        prior: a pair repulsion, or None.
        contact: what is done with atoms closer than any in training; None: nothing.
        floor: what is done with energies of atoms far below any in training; None: nothing.
        is_tabulated: whether path weights come out of tables; see ``tabulated``.
        provenance: what the model was trained on and how, as its file tells.
    """

    def __init__(
        self,
        config: ModelConfig,
        species: Sequence[str],
        model: Network,
        head: EnergyHead,
        prior: nn.Module | None = None,
        contact: ContactRepulsion | None = None,
        floor: EnergyFloor | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.species = tuple(species)
        self.model = model
        self.head = head
        self.prior = prior
        self.contact = contact
        self.floor = floor
        self._scope = GraphScope(config.cutoff, self.species)
        self.provenance: dict[str, Any] = {}
        self._kernels: Kernels = load_backend("reference")
        self._choose_again = False
        self.is_tabulated = False
        self._repeats = Repeats()
        self._index_of_number = {atomic_numbers[s]: i for i, s in enumerate(self.species)}

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"Potential({self.config.name}, {' '.join(self.species)}, cut-off {self.cutoff:g} "
            f"Angstrom, {self.n_parameters} parameters, {dtype}, {self.device}, {self.backend})"
        )

    @property
    def cutoff(self) -> float:
        """Distance in Angstrom below which atoms are neighbours."""
        return self.config.cutoff

    @property
    def hops(self) -> int:
        """How many edges away an atom's energy may depend on others.

        Beyond so many cut-offs nothing matters to it.
        """
        return self.model.hops

    @property
    def n_parameters(self) -> int:
        """How many numbers training changes."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in; references and sums are float64 always."""
        return next(self.model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self.model.parameters()).device

    @property
    def backend(self) -> str:
        """What computes the heavy operations."""
        return self._kernels.name

    @property
    def references(self) -> Tensor:
        """[n_species] float64: the energy of each element's isolated atom, eV."""
        return self.head.references

    @property
    def shortest_distances(self) -> dict[str, float] | None:
        """How close atoms came in training, Angstrom by pair of elements such as "C-H".

        None where it is not known: of imported models, and where training started from one.
        """
        return self.provenance.get("data", {}).get("shortest_distances")

    def graph(self, structures: Structure | Iterable[Structure]) -> AtomGraph:
        """The graph of one structure or of several, on the potential's device.

        Raises:
            UnknownElementError: an element that the potential does not know.
            DataError: an impossible cell or position.
            ClebschError: no structure, or the name of a file.
        """
        single = hasattr(structures, "numbers")
        if isinstance(structures, str | os.PathLike):
            raise ClebschError(
                f"{structures}: a graph is made of structures, not of a file's name: read them "
                "with ase.io.read"
            )
        if not (single or isinstance(structures, Iterable)):
            raise _no_structure(structures)
        listed: list[Any] = [structures] if single else list(structures)  # type: ignore[arg-type]
        if not listed:
            raise ClebschError("there is no structure to make a graph of")
        graphs = [self._graph(s, "" if single else f"structure {i}") for i, s in enumerate(listed)]
        return batch_graphs(graphs).to(self.device)

    def _graph(self, structure: Structure, place: str) -> AtomGraph:
        if not hasattr(structure, "numbers"):
            raise _no_structure(structure)
        place = getattr(structure, "source", "") or place
        device = search_place(self.device)
        species = self.species_of(np.asarray(structure.numbers), place)
        try:
            graph = neighbor_graph(
                torch.tensor(np.asarray(structure.positions), dtype=torch.float64, device=device),
                torch.tensor(np.asarray(structure.cell), dtype=torch.float64, device=device),
                torch.tensor(np.asarray(structure.pbc), dtype=torch.bool, device=device),
                species.to(device),
                self.cutoff,
            )
        except DataError as error:
            raise DataError(f"{place}: {error}") if place else error from None
        return replace(graph, scope=self._scope)

    def species_of(self, numbers: np.ndarray, place: str = "") -> Tensor:
        """[n] int64: indices into ``species`` of atomic numbers.

        Args:
            numbers: [n] whole numbers.
            place: where they are, for the error.

        Raises:
            UnknownElementError: an element that the potential does not know.
        """
        unknown = [z for z in np.unique(numbers) if int(z) not in self._index_of_number]
        if unknown:
            number = int(unknown[0])
            known = 0 <= number < len(chemical_symbols)
            symbol = chemical_symbols[number] if known else f"of number {number}"
            atom = int(np.flatnonzero(numbers == unknown[0])[0])
            error = unknown_element(symbol, f"atom {atom}", self.species)
            raise UnknownElementError(f"{place}: {error}") if place else error
        return torch.tensor([self._index_of_number[int(z)] for z in numbers], dtype=torch.int64)

    def demand_graph(self, graph: object, call: str) -> None:
        """Say that the potential computes on its own graphs, and how to ``call`` it with one.

        Raises:
            ClebschError: it is no graph, or one for other elements or a shorter cut-off.
        """
        if not isinstance(graph, AtomGraph):
            raise ClebschError(
                f"a potential computes on graphs, not on {type(graph).__name__}: {call}"
            )
        if graph.scope is None or graph.scope is self._scope:
            return
        made, needed = graph.scope, self._scope
        if made.elements != needed.elements:
            theirs, ours = ", ".join(made.elements), ", ".join(needed.elements)
        elif made.cutoff < needed.cutoff:
            theirs, ours = (f"a cut-off of {s.cutoff:g} Angstrom" for s in (made, needed))
        else:
            return
        raise ClebschError(
            f"the graph was made for {theirs}, and this potential is for {ours}: let it make one "
            f"of its own, {call}"
        )

    def forward(
        self,
        graph: AtomGraph,
        outputs: Sequence[str] = ("energy", "forces"),
        differentiable: bool = False,
    ) -> Prediction:
        """Compute what is asked for, and no derivative that is not.

        Args:
            graph: one or several structures.
            outputs: names out of ``clebsch.conventions.OUTPUTS``.
            differentiable: keep what a loss on the results needs to be differentiated.

        Raises:
            ClebschError: an unknown output; stress without a cell; a Hessian of several structures
                or of a tabulated potential; derivatives under ``torch.inference_mode``; structures
                in place of their graph, or a graph for other elements or a shorter cut-off.
        """
        self.demand_graph(graph, "potential(potential.graph(structures))")
        asked = {outputs} if isinstance(outputs, str) else set(outputs)
        for name in asked - set(OUTPUTS):
            raise ClebschError(f"unknown output {name!r}. {did_you_mean(name, OUTPUTS)}")
        if "stress" in asked:
            volumes = _volumes(graph)
        if self._choose_again:
            self.use_backend()
        if "hessian" in asked and self.is_tabulated:
            raise ClebschError("a tabulated potential has no Hessian: ask the exact one for it")
        needs_gradient = bool(asked & {"forces", "virial", "stress", "hessian"})
        if needs_gradient:
            refuse_inference_mode("forces")
        with torch.autocast(self.device.type, enabled=False):  # nothing here bears bfloat16
            # Evaluations that repeat are replayed, to the same bits.
            in_contact = self.is_in_contact(graph)
            results = None
            if not in_contact:
                results = self._repeats.replayed(
                    self, self._results, graph, asked, needs_gradient, differentiable
                )
            if results is None:
                results = self._eager(graph, asked, needs_gradient, differentiable, in_contact)
        if "stress" in asked:
            results["stress"] = -results["virial"] / volumes[:, None, None]
        if not differentiable:
            results = {name: value.detach() for name, value in results.items()}
        return Prediction(**{name: value for name, value in results.items() if name in asked})

    def _eager(
        self,
        graph: AtomGraph,
        asked: set[str],
        needs_gradient: bool,
        differentiable: bool,
        in_contact: bool,
    ) -> dict[str, Tensor]:
        """Results by running modules."""
        positions, create_graph = graph.positions, differentiable
        if "hessian" in asked:
            if graph.n_frames != 1:
                raise ClebschError("a Hessian is computed for one structure at a time")
            positions = positions.detach().requires_grad_()
            create_graph = True
        with torch.set_grad_enabled(create_graph or needs_gradient):
            results = self._results(graph, positions, needs_gradient, create_graph, in_contact)
            if "hessian" in asked:
                results["hessian"] = _hessian(results["forces"], positions, differentiable)
        return results

    def _results(
        self,
        graph: AtomGraph,
        positions: Tensor,
        needs_gradient: bool,
        create_graph: bool,
        in_contact: bool = False,
    ) -> dict[str, Tensor]:
        """Energies and, with the gradient, forces and virials.

        It is this that is recorded, and so it may not branch on values or sizes.
        """
        vectors = edge_vectors(graph, positions)
        if needs_gradient and not vectors.requires_grad:
            vectors.requires_grad_()
        contributions = self._contributions(vectors, graph, in_contact) * graph.counted[:, None]
        site_energies = contributions.sum(1)
        results = {
            "energy": self._kernels.segment_sum(site_energies, graph.frame_ptr),
            "site_energies": site_energies,
            "layer_energies": contributions,
        }
        if needs_gradient:
            (gradient,) = torch.autograd.grad(
                site_energies.sum(), vectors, create_graph=create_graph, materialize_grads=True
            )
            results["forces"] = edge_forces(gradient, graph, self._kernels)
            results["virial"] = _virial(gradient, vectors, graph, self._kernels)
        return results

    def is_in_contact(self, graph: AtomGraph) -> bool:
        """Whether atoms are so close that the contact repulsion acts."""
        return self.contact is not None and self.contact.is_reached(graph)

    def _contributions(self, vectors: Tensor, graph: AtomGraph, in_contact: bool) -> Tensor:
        """[N, 1 + T] float64, eV: the terms of equation 13, and what is added with the first."""
        repulsion = None
        if in_contact:
            assert self.contact is not None
            vectors, repulsion = self.contact(vectors, graph)
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        contributions = self.head(self.model(vectors.to(self.dtype), graph), lengths, graph)
        if self.prior is not None:
            contributions = _with_first(contributions, self.prior(lengths, graph))
        if self.floor is not None:
            binding = contributions.sum(1) - self.references[graph.species]
            contributions = _with_first(contributions, self.floor(binding, graph))
        if repulsion is not None:
            contributions = _with_first(contributions, repulsion)
        return contributions

    def tabulated(self, spacing: float = 0.015) -> Potential:
        """A copy for inference whose path weights are tabulated as functions of the distance.

        It is faster where radial networks cost much, cannot be trained or saved, and has no
        Hessian. Its forces differ by the slopes' error of cubic splines, of third order in
        ``spacing``.

        Args:
            spacing: Angstrom between the distances of the tables, at most a twentieth of the
                cut-off.

        Raises:
            ConfigError: another spacing.
            ClebschError: the potential is tabulated already.
        """
        if self.is_tabulated:
            raise ClebschError("a tabulated potential: tabulate the one that it was made from")
        if not 0 < spacing <= self.cutoff / 20:
            raise ConfigError(
                f"tables with a spacing of {spacing} Angstrom: it is above 0 and at most "
                f"{self.cutoff / 20:.3g}, a twentieth of the cut-off"
            )
        duplicate = copy.deepcopy(self).requires_grad_(False)
        duplicate.is_tabulated = True
        duplicate.model.tabulate(spacing)
        return duplicate.use_backend(self.backend)

    def tensor_not_finite(self) -> str | None:
        """Name of the first tensor of the state with NaN or infinity in it; None of a sound one."""
        state = self.state_dict()
        return next((name for name in state if not state[name].isfinite().all()), None)

    def save(
        self,
        path: Path | str,
        *,
        provenance: dict[str, Any] | None = None,
        reference: Structure | None = None,
    ) -> None:
        """Write one safetensors file; see ``clebsch.modelfile.save_potential``."""
        from clebsch.modelfile import save_potential

        save_potential(self, path, provenance=provenance, reference=reference)

    def use_backend(self, name: str = "auto") -> Potential:
        """Choose what computes the heavy operations, and check it against the reference.

        Moving or casting the potential chooses anew.

        Args:
            name: "llvm", "triton", "reference", or "auto" for the fastest that the device allows.

        Raises:
            BackendError: the backend is missing, gives other numbers than the reference on a
                small structure, or the network was cast to what no backend computes in.
        """
        if self.dtype not in (torch.float32, torch.float64):
            raise BackendError(f"potentials compute in float32 or float64, not in {self.dtype}")
        kernels = best_backend(self.device) if name == "auto" else load_backend(name)
        self._choose_again = False
        self.compute_with(load_backend("reference"))
        if kernels.name != "reference" and self._can_run(kernels, needed=name != "auto"):
            self.compute_with(kernels)
        return self

    def compute_with(self, kernels: Kernels) -> None:
        """Compute with these kernels, without asking whether they are right."""
        self._kernels = kernels
        self._repeats.forget()
        kernels.install(self)

    def _can_run(self, kernels: Kernels, needed: bool) -> bool:
        """Whether a backend runs here; where it is not needed, a warning says that it does not.

        Raises:
            BackendError: it gives wrong numbers, or fails and is needed.
        """
        try:
            check_backend(self, kernels)
        except BackendError:
            raise
        except Exception as error:  # compilers and drivers fail in any way
            reason = f"the {kernels.name} backend fails on this machine: {error}"
            if needed:
                raise BackendError(reason) from error
            warnings.warn(f"{reason}; the slower reference is used instead", stacklevel=3)
            return False
        return True

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Potential:
        before = (self.device, self.dtype)
        try:
            place = fn(torch.empty(0)).device
        except (AssertionError, RuntimeError) as error:  # torch's, of devices that are not here
            reason = str(error).splitlines()[0]
            raise ClebschError(f"the potential cannot be moved or cast: {reason}") from error
        if place.type == "mps":
            raise ClebschError(
                "geometry and sums of energies are float64, which Apple's GPUs (mps) do not have; "
                f'use the device "cpu" (torch {torch.__version__})'
            )
        with torch.inference_mode(False):  # parameters serve outside, too
            super()._apply(fn, recurse)
        self._repeats.forget()
        if (self.device, self.dtype) != before and self._kernels.name != "reference":
            self._choose_again = True
        return self

    def replays(self, graph: AtomGraph) -> bool:
        """Whether evaluations of such a graph are replayed as CUDA graphs, and edges beyond the
        cut-off cost less than to find them would.
        """
        return self.device.type == "cuda" and self.backend == "triton" and has_few_edges(graph)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles make their own recordings."""
        return {**self.__dict__, "_repeats": Repeats()}


def _with_first(contributions: Tensor, energies: Tensor) -> Tensor:
    """Energies of atoms [N] added to the first of the terms [N, 1 + T]."""
    first = contributions[:, :1] + energies[:, None]
    return torch.cat([first, contributions[:, 1:]], dim=1)


def _no_structure(what: object) -> ClebschError:
    return ClebschError(
        f"a graph is made of structures, ase.Atoms for one, not of {type(what).__name__}"
    )


def refuse_inference_mode(what: str) -> None:
    """Say that there are no derivatives, of which ``what`` is one, under ``torch.inference_mode``.

    Raises:
        ClebschError: it is on.
    """
    if torch.is_inference_mode_enabled():
        raise ClebschError(
            f"{what} are derivatives, which torch.inference_mode rules out; use torch.no_grad"
        )


def edge_forces(gradient: Tensor, graph: AtomGraph, kernels: Kernels) -> Tensor:
    """[N, 3] from the energy's derivatives by edge vectors [E, 3].

    An edge pulls its sender one way and its receiver the other.
    """
    pulled = kernels.to_senders(gradient, graph)
    return pulled - kernels.segment_sum(gradient, graph.row_ptr)


def _virial(gradient: Tensor, vectors: Tensor, graph: AtomGraph, kernels: Kernels) -> Tensor:
    """[n_frames, 3, 3]: minus the derivative with respect to a symmetric strain."""
    outer = vectors[:, :, None] * gradient[:, None, :]
    edge_ptr = graph.row_ptr[graph.frame_ptr]
    total = kernels.segment_sum(outer, edge_ptr)
    return -0.5 * (total + total.transpose(1, 2))


def _hessian(forces: Tensor, positions: Tensor, create_graph: bool) -> Tensor:
    """[3 N, 3 N]: minus the derivative of the forces, symmetric to rounding."""
    rows = [
        torch.autograd.grad(
            -force, positions, retain_graph=True, create_graph=create_graph, materialize_grads=True
        )[0]
        for force in forces.flatten()
    ]
    return torch.stack(rows).flatten(1)


def _volumes(graph: AtomGraph) -> Tensor:
    """[n_frames] float64: volumes of the cells that were given.

    Raises:
        ClebschError: a structure has no cell of full rank.
    """
    volumes = torch.linalg.det(graph.cell).abs()
    flat = volumes < 1e-10
    if flat.any():
        frame = int(flat.nonzero()[0])
        which = f"structure {frame}" if graph.n_frames > 1 else "the structure"
        raise ClebschError(
            f"{which} has no cell with a volume, so it has no stress; its virial always exists"
        )
    return volumes
