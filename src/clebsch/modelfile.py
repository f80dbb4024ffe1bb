"""Model files: one safetensors file with JSON in its header, checked on every load, no pickle.

Besides the weights a file holds the format's version, configuration, species, references, units,
provenance, and a structure with the energy, forces and stress that the saved potential gave for
it. Loading computes these again and refuses a potential that answers differently. A file may hold
several heads of a model: potentials of which one is loaded, with most weights in common.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from ase import Atoms
from torch import Tensor

from clebsch.agreement import example_structure, without_guards
from clebsch.devices import usable_device
from clebsch.errors import BackendError, ClebschError, ConfigError, ModelFileError
from clebsch.factory import assemble
from clebsch.files import atomic_write, no_such_file
from clebsch.interop.mace_torch import choose_head, mace_heads, read_mace_torch
from clebsch.interop.torch_archive import is_torch_file
from clebsch.interrupt import signals_wait
from clebsch.models.presets import model_config
from clebsch.potential import Potential, Structure
from clebsch.rounding import allow_tf32

FORMAT = "clebsch-potential"
FORMAT_VERSION = 3
UNITS = {"length": "Angstrom", "energy": "eV", "stress": "eV/Angstrom^3"}

#: How far a loaded potential may be from the numbers in its file: eV per atom, relative to 1 + the
#: largest force; then forces and stress, relative to 1 + the largest of them. In float64 only the
#: order of sums differs between machines; in float32 it is 1e-7 relative times the network's depth.
TOLERANCES = {torch.float64: (1e-8, 1e-7), torch.float32: (1e-4, 1e-3)}


def write_tensors(path: Path | str, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors and JSON metadata with a checksum over both, atomically.

    Raises:
        OSError: the file cannot be written; what was there before is unchanged.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(metadata, sort_keys=True)
    header = {"clebsch": text, "sha256": _checksum(stored, text)}
    atomic_write(Path(path), safetensors.torch.save(stored, metadata=header))


def read_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What ``write_tensors`` wrote.

    Raises:
        ModelFileError: no such file, not a file of ours, truncated or altered.
    """
    path = Path(path)
    if not path.is_file():
        if (path / "model.safetensors").is_file():
            raise ModelFileError(f"{path}: is a folder; its model is {path / 'model.safetensors'}")
        raise ModelFileError(no_such_file(path, "a model file"))
    try:
        with signals_wait(), safetensors.safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ModelFileError(f"{path}: not a readable safetensors file ({error})") from None
    if "clebsch" not in header or "sha256" not in header:
        raise ModelFileError(f"{path}: a safetensors file, but not one that Clebsch wrote")
    if _checksum(tensors, header["clebsch"]) != header["sha256"]:
        raise ModelFileError(
            f"{path}: the checksum does not match; the file was altered or damaged"
        )
    return tensors, json.loads(header["clebsch"])


def save_potential(
    potential: Potential,
    path: Path | str,
    *,
    provenance: dict[str, Any] | None = None,
    reference: Structure | None = None,
) -> None:
    """Write a potential to one file.

    Args:
        potential: what to save.
        path: the file, by habit ``*.safetensors``.
        provenance: what it was trained on and how; the potential's own if None.
        reference: a structure whose energy, forces and stress are stored and verified on load; a
            small crystal of all the potential's elements if None.

    Raises:
        ClebschError: the potential is tabulated.
        ModelFileError: it holds numbers that are not finite.
    """
    structure = example_structure(potential) if reference is None else reference
    metadata = {
        **_architecture(potential, path),
        "provenance": potential.provenance if provenance is None else provenance,
        "reference": _answers(potential, structure),
    }
    write_tensors(path, dict(potential.state_dict()), metadata)


def save_heads(potentials: Mapping[str, Potential], path: Path | str) -> None:
    """Write several heads of one model to one file, from which ``load`` takes one by its name.

    Tensors that all heads have alike are stored once; every head has answers of its own.

    Args:
        potentials: by the names of the heads; they differ in numbers alone.
        path: the file, by habit ``*.safetensors``.

    Raises:
        ConfigError: there are none, or they differ in architecture, elements or precision.
        ClebschError: one is tabulated.
        ModelFileError: one holds numbers that are not finite.
    """
    architectures = [_architecture(potential, path) for potential in potentials.values()]
    if not architectures or any(one != architectures[0] for one in architectures):
        raise ConfigError(
            f"{path}: heads of one model have one architecture, with the same elements and "
            f"precision; {', '.join(potentials) or 'no potentials'} cannot be kept as such"
        )
    states = [potential.state_dict() for potential in potentials.values()]
    tensors = {}
    for name, first in states[0].items():
        if all(torch.equal(first, state[name]) for state in states):
            tensors[name] = first
        else:
            tensors |= {f"heads.{i}.{name}": state[name] for i, state in enumerate(states)}
    heads = [
        {
            "name": name,
            "provenance": potential.provenance,
            "reference": _answers(potential, example_structure(potential)),
        }
        for name, potential in potentials.items()
    ]
    write_tensors(path, tensors, {**architectures[0], "heads": heads})


def _architecture(potential: Potential, path: Path | str) -> dict[str, Any]:
    """Metadata that heads of one model have in common.

    Raises:
        ClebschError: the potential is tabulated.
        ModelFileError: it holds numbers that are not finite.
    """
    if potential.is_tabulated:
        raise ClebschError(
            "a tabulated potential cannot be saved: save the one that it was made from"
        )
    broken = potential.tensor_not_finite()
    if broken is not None:
        raise ModelFileError(
            f"{path}: not written: {broken} of the potential holds NaN or infinity; if its "
            "training diverged, save the weights of before"
        )
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "units": UNITS,
        "config": {
            **potential.config.model_dump(mode="json"),
            "contact_repulsion": potential.contact is not None,  # users may take them off
            "energy_floor": potential.floor is not None,
        },
        "species": list(potential.species),
        "dtype": str(potential.dtype).removeprefix("torch."),
        "avg_num_neighbors": potential.model.avg_num_neighbors,
    }


def model_heads(path: Path | str) -> list[str]:
    """Names of the heads in a model file, of Clebsch or of mace-torch; none where one has no name.

    Raises:
        ModelFileError: the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    if path.is_file() and is_torch_file(path):
        return mace_heads(path)
    return [head["name"] for head in read_tensors(path)[1].get("heads", ())]


@torch.inference_mode(False)  # the potential must be usable outside of it
def load(
    path: Path | str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    head: str | None = None,
    species: Sequence[str] | None = None,
    properties: Mapping[str, float] | None = None,
) -> Potential:
    """Read a potential and verify that it gives the answers stored with it.

    Files of mace-torch 0.3.x are read too, without running anything that is in them
    (``clebsch.interop.mace_torch``); they store no answers.

    Args:
        path: the file.
        dtype: what the network computes in; as it was saved if None.
        device: where it computes.
        head: of a model with several, which.
        species: of a mace-torch model, the elements to keep; all if None.
        properties: of a mace-torch model that embeds total charge, spin or the like, their values
            for this potential.

    Raises:
        ModelFileError: the file is missing, damaged, hostile, of a newer format or not supported,
            or the potential does not reproduce the energies, forces and stress stored in it.
        BackendError: the backend disagrees with the reference here, or gives no finite numbers.
        ConfigError: the model lacks the head, element or property asked for; it has several heads
            and none was chosen; a property that it embeds has no value; or there is no such device
            here.
    """
    if not isinstance(path, str | os.PathLike):
        raise ModelFileError(f"a model is read from a file, not from {type(path).__name__}")
    path = Path(path)
    if dtype not in (None, *TOLERANCES):
        raise ModelFileError(
            f"{path}: dtype is torch.float32 or torch.float64, in which potentials compute, not "
            f"{dtype!r}"
        )
    place = usable_device(device)
    potential, reference = read_potential(path, head=head, species=species, properties=properties)
    saved_dtype = potential.dtype
    potential.model.to(dtype or saved_dtype)
    try:
        potential.to(place).requires_grad_(False).use_backend()
    except BackendError as error:
        raise BackendError(f"{path}: {error}") from error
    coarser = max(saved_dtype, potential.dtype, key=lambda kind: torch.finfo(kind).eps)
    if reference is not None:
        _verify(potential, reference, TOLERANCES[coarser], path)
    return potential


def read_potential(
    path: Path | str,
    *,
    head: str | None = None,
    species: Sequence[str] | None = None,
    properties: Mapping[str, float] | None = None,
) -> tuple[Potential, dict[str, Any] | None]:
    """A potential as it was saved, on the reference backend, and what it said then; not verified.

    Args:
        path: the file.
        head: of a model with several, which.
        species: of a mace-torch model, the elements to keep; all if None.
        properties: of a mace-torch model, values of the properties that it embeds.

    Raises:
        ModelFileError: the file is missing, damaged, of a newer format, or holds something else.
        ConfigError: the choices do not fit the model.
    """
    path = Path(path)
    if path.is_file() and is_torch_file(path):
        potential = read_mace_torch(path, head=head, species=species, properties=properties)
        return potential, None
    if species is not None or properties:
        raise ConfigError(
            f"{path}: elements and properties are chosen of files of mace-torch alone"
        )
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise ModelFileError(f"{path}: holds {metadata.get('format')!r}, not a potential")
    if metadata["format_version"] > FORMAT_VERSION:
        raise ModelFileError(
            f"{path}: format version {metadata['format_version']} is newer than this Clebsch, "
            f"which reads up to {FORMAT_VERSION}"
        )
    if metadata["format_version"] == 1:
        tensors, metadata = _from_version_1(tensors, metadata)
    if metadata["format_version"] <= 2:
        metadata["config"] |= {"contact_repulsion": False, "energy_floor": False}  # not known then
    if "heads" in metadata:
        tensors, metadata = _one_head(tensors, metadata, head, path)
    elif head is not None:
        raise ConfigError(f"{path}: no head {head!r}: the model has one head, which has no name")
    try:
        potential = assemble(
            model_config(metadata["config"]),
            metadata["species"],
            avg_num_neighbors=metadata["avg_num_neighbors"],
            dtype=getattr(torch, metadata["dtype"]),
        )
        potential.load_state_dict(tensors)
    except (ConfigError, KeyError, RuntimeError, AttributeError) as error:
        raise ModelFileError(f"{path}: the weights do not fit the configuration: {error}") from None
    potential.provenance = metadata["provenance"]
    return potential, metadata["reference"]


def _from_version_1(
    tensors: dict[str, Tensor], metadata: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Version 1 knew MACE alone, with all settings in one section, and one map after each sum."""
    old = dict(metadata["config"])
    moved = {
        "product": {key: old.pop(key) for key in ("correlation", "couplings")},
        "update": {"first_layer": old.pop("first_layer")},
        "readout": {"hidden": old.pop("readout_hidden")},
    }
    config = {**old, **moved, "name": "message_passing"}
    before, after = "atomic_basis.linear.", "atomic_basis.linears.0."
    renamed = {name.replace(before, after): tensor for name, tensor in tensors.items()}
    return renamed, {**metadata, "config": config}


def _one_head(
    tensors: dict[str, Tensor], metadata: dict[str, Any], head: str | None, path: Path
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a file would hold if it held that head alone."""
    heads = metadata["heads"]
    index = choose_head([one["name"] for one in heads], head, str(path))
    own = f"heads.{index}."
    chosen = {
        name.removeprefix(own): tensor
        for name, tensor in tensors.items()
        if name.startswith(own) or not name.startswith("heads.")
    }
    return chosen, {**metadata, **heads[index]}


def reference_structure(stored: dict[str, Any]) -> Atoms:
    """The structure whose energies, forces and stress a file holds."""
    return Atoms(**{name: stored[name] for name in ("numbers", "positions", "cell", "pbc")})


def _checksum(tensors: dict[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _answers(potential: Potential, structure: Structure) -> dict[str, Any]:
    """The structure and what the potential's network says about it, as JSON."""
    graph = potential.graph(structure)
    has_volume = abs(float(torch.linalg.det(graph.cell[0]))) > 1e-10
    with allow_tf32(False), without_guards(potential):
        prediction = potential(graph, ("energy", "forces", *(("stress",) if has_volume else ())))
    return {
        "numbers": np.asarray(structure.numbers).tolist(),
        "positions": np.asarray(structure.positions).tolist(),
        "cell": np.asarray(structure.cell).tolist(),
        "pbc": np.asarray(structure.pbc).tolist(),
        "energy": float(prediction.energy),
        "forces": prediction.forces.tolist(),
        "stress": prediction.stress[0].tolist() if has_volume else None,
    }


def _verify(
    potential: Potential, stored: dict[str, Any], tolerances: tuple[float, float], path: Path
) -> None:
    structure = reference_structure(stored)
    if not np.isfinite([stored["energy"], *np.ravel(stored["forces"])]).all():
        raise ModelFileError(
            f"{path}: energy or forces stored in it are not finite numbers: the model was of no "
            "use already when it was saved; if its training diverged, use a model of before"
        )
    here = _answers(potential, structure)
    energy_tolerance, tolerance = tolerances
    largest_force = np.abs(np.array(stored["forces"])).max()
    deviations = {
        "energy": (
            abs(here["energy"] - stored["energy"]) / len(structure),
            energy_tolerance * (1 + largest_force),
        )
    }
    for name in ("forces", "stress"):
        if stored[name] is not None:
            expected = np.array(stored[name])
            largest = np.abs(np.array(here[name]) - expected).max()
            deviations[name] = (largest, tolerance * (1 + np.abs(expected).max()))
    for name, (deviation, allowed) in deviations.items():
        if not deviation <= allowed:
            raise ModelFileError(
                f"{path}: this machine does not reproduce the stored {name} of the reference "
                f"structure: off by {deviation:.3g}, allowed {allowed:.3g}"
            )
