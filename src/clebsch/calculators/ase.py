"""The ASE calculator of a potential."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from clebsch.calculators.verlet import VerletList, within_cutoff
from clebsch.contacts import Contact, find_contacts
from clebsch.conventions import VOIGT
from clebsch.errors import ClebschError
from clebsch.graph import AtomGraph
from clebsch.neighbors import check_distances
from clebsch.potential import Potential

_VOIGT_INDEX = tuple(np.array(VOIGT).T)
_OUTPUT_OF_PROPERTY = {"forces": "forces", "stress": "stress", "energies": "site_energies"}


class ClebschCalculator(Calculator):
    """Energies (eV), forces (eV/Angstrom), stress (eV/Angstrom^3, Voigt) and per-atom energies.

    Only what is asked for is computed, the energy always. What was asked for at the previous
    geometry is computed along with the first request at the next one: a barostat or a relaxation
    of the cell asks for forces, then for the stress, and would otherwise pay twice.

    Attributes:
        potential: what computes.
        n_calls: number of evaluations of the potential so far.
    """

    implemented_properties: ClassVar[list[str]] = [
        "energy",
        "free_energy",
        "forces",
        "stress",
        "energies",
    ]

    def __init__(self, potential: Potential, skin: float = 0.5) -> None:
        """Make a calculator.

        Args:
            potential: what computes.
            skin: Angstrom by which the neighbour list reaches beyond the cut-off.

        Raises:
            ClebschError: a negative skin.
        """
        super().__init__()
        self.atoms: Atoms | None
        self.results: dict[str, Any]
        self.potential = potential
        self.n_calls = 0
        self._neighbors = VerletList(potential, skin)
        self._graph: AtomGraph | None = None
        self._asked: set[str] = set()

    def __repr__(self) -> str:
        return f"ClebschCalculator({self.potential!r})"

    @property
    def n_builds(self) -> int:
        """Number of neighbour searches so far."""
        return self._neighbors.n_builds

    def contacts(self) -> list[Contact]:
        """Atoms of the last geometry that are much closer than any in training: the closest of
        each pair of elements.

        Raises:
            ClebschError: nothing was computed yet, or the last geometry was refused; the model
                does not tell how close atoms came in its training.
        """
        trained = self.potential.shortest_distances
        if trained is None:
            raise ClebschError("the model does not tell how close atoms came in its training")
        # edges of the skin are longer than any contact
        return find_contacts(
            self._last_graph(), self.potential.species, trained, self.potential.cutoff
        )

    def lone_atoms(self) -> list[int]:
        """Atoms of the last geometry that have no other within the cut-off; images of their own do
        not count.

        Raises:
            ClebschError: nothing was computed yet, or the last geometry was refused.
        """
        graph = within_cutoff(self._last_graph(), float(self.potential.cutoff))
        others = graph.receivers[graph.senders != graph.receivers]
        counts = torch.bincount(others, minlength=graph.n_atoms)
        return [int(atom) for atom in (counts == 0).nonzero()[:, 0]]

    def _last_graph(self) -> AtomGraph:
        if self._graph is None:
            raise ClebschError("there is no structure whose neighbours are known")
        return self._graph

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """What differs from the last geometry; of what ASE compares, only what can matter here."""
        seen = self.atoms
        if seen is None:
            return list(all_changes)
        differs = {
            "positions": not np.array_equal(seen.positions, atoms.positions),
            "numbers": not np.array_equal(seen.numbers, atoms.numbers),
            "cell": not np.array_equal(seen.cell.array, atoms.cell.array),
            "pbc": not np.array_equal(seen.pbc, atoms.pbc),
        }
        return [name for name, different in differs.items() if different]

    def get_property(
        self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        """One property, computed unless it is known; ASE's ``get_...`` methods call this."""
        value = super().get_property(name, atoms, allow_calculation)
        if allow_calculation:  # else it is a writer that takes what there is
            self._asked.add(name)
        return value

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute ``properties`` into ``results``; ASE calls this.

        Raises:
            UnknownElementError: an element that the potential does not know.
            DataError: an impossible cell, a position that is not a finite number, or two atoms at
                one place.
            ClebschError: the stress of a structure without a cell of full rank, or an energy that
                is not a finite number.
        """
        wanted = set(properties)
        if system_changes or self._graph is None:
            atoms = self.atoms if atoms is None else atoms
            self.results, self._graph = {}, None  # an error leaves nothing of the structure before
            if atoms is None:
                raise ClebschError("there is no structure to compute for")
            self._graph = self._neighbors.graph(atoms)
            # Not Calculator.calculate: it looks for a folder on disk at every step.
            self.atoms = atoms.copy()
            expected = self._asked
            if "stress" in expected and not atoms.cell.volume > 0:
                expected = expected - {"stress"}
            self._asked = set()
            wanted = wanted | expected
        outputs = [
            output
            for name, output in _OUTPUT_OF_PROPERTY.items()
            if name in wanted and name not in self.results
        ]
        self.n_calls += 1
        prediction = self.potential(self._graph, ("energy", *outputs))
        energy = float(prediction.energy)
        if not math.isfinite(energy):
            check_distances(self._graph)  # atoms may have met since the last neighbour search
            raise ClebschError("the model's energy of this structure is not a finite number")
        self.results["energy"] = self.results["free_energy"] = energy
        if prediction.forces is not None:
            self.results["forces"] = prediction.forces.cpu().numpy()
        if prediction.stress is not None:
            self.results["stress"] = prediction.stress[0].cpu().numpy()[_VOIGT_INDEX]
        if prediction.site_energies is not None:
            self.results["energies"] = prediction.site_energies.cpu().numpy()
