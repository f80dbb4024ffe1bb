"""From a configuration to data and an untrained potential: read, references, split, statistics."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from ase.data import chemical_symbols

import clebsch
from clebsch.contacts import closest, pair_table
from clebsch.data.check import LABEL_CHECKS
from clebsch.data.frame import Frame, describe_left_out, describe_weights
from clebsch.data.labels import ALIASES, NOT_READ
from clebsch.data.loader import BatchSampler, LabelledGraphs, describe_counts
from clebsch.data.rawframe import where
from clebsch.data.read import read_frames, read_with_census
from clebsch.data.references import fit_references, isolated_atoms
from clebsch.data.split import draw_frames, split_frames
from clebsch.data.statistics import compute_statistics
from clebsch.devices import usable_device
from clebsch.elements import unknown_element
from clebsch.errors import ConfigError, DataError
from clebsch.modelfile import load, read_potential
from clebsch.models.config import MessagePassingConfig
from clebsch.nn.floor import UNKNOWN
from clebsch.potential import Potential
from clebsch.training.calibration import energy_residuals
from clebsch.training.config import DEFAULT_RECIPE, Config, DataConfig
from clebsch.training.lesson import Lesson
from clebsch.training.loss import trainable_counts
from clebsch.training.provenance import checksums
from clebsch.training.replayed import Replay, prepare_replay

Say = Callable[[str], None]

#: Edges of a batch of structures that are evaluated, not learnt from.
BATCH_EDGES = 20_000

#: eV: more than an atom is bound by.
MOST_BINDING = 20.0

#: eV per atom: energies that are further from a model's may be of another level of theory.
SAME_LEVEL = 0.1

#: Structures that are asked whether they are.
ASKED = 50

#: Training structures that are few: one at a time teaches more than several.
FEW = 100


@dataclass(frozen=True, eq=False)
class Prepared:
    """What training starts from.

    Attributes:
        potential: with random weights or those of ``initial``, on the configured device.
        train: structures to train on.
        valid: structures to validate on.
        references: eV by element.
        origin: of the references: "isolated", "fit", "given", "none" or "initial".
        fitted: elements whose references are fitted to the data.
        initial: SHA-256 of the model file that training starts from; "" without one.
        shortest_distances: how close atoms come in training and came in that of the initial model,
            Angstrom by pair of elements; None if that does not tell.
        depths: [n_species], how far below its reference an atom came in training of the initial
            model, eV; None if that does not tell, or if the potential has no floor.
        replay: what is learnt beside, so that the initial model's answers are not forgotten.
    """

    potential: Potential
    train: LabelledGraphs
    valid: LabelledGraphs
    references: dict[str, float]
    origin: str
    fitted: frozenset[str]
    initial: str
    shortest_distances: dict[str, float] | None
    depths: torch.Tensor | None
    replay: Replay | None

    @property
    def lessons(self) -> list[Lesson]:
        """What every step learns from."""
        data = Lesson(self.potential, self.train)
        return [data] if self.replay is None else [data, self.replay.lesson]

    def batch(self, indices: Sequence[int], step: int) -> list[Sequence[int]]:
        """What a step learns, by lesson: structures of the data, and those that are replayed."""
        return [indices] if self.replay is None else [indices, self.replay.batch(step)]

    def fingerprint(self, *more: object) -> str:
        """SHA-256 over all data, in their order, the initial model, and what else matters."""
        parts = [self.train.fingerprint(), self.valid.fingerprint(), self.initial]
        if self.replay is not None:
            parts.append(self.replay.fingerprint)
        text = "".join((*parts, *map(repr, more)))
        return hashlib.sha256(text.encode()).hexdigest()


def prepare(config: Config, say: Say) -> Prepared:
    """Read the data and build the potential. The same configuration and files give the same.

    Raises:
        DataError: files, labels or references are not what they should be.
        ConfigError: the chosen validation metric has no labels, or the device cannot be used here.
    """
    device = usable_device(config.device)  # before data are read, which takes its time
    train_frames, valid_frames, known = read_data(config.data, config.seed)
    for finding in chain.from_iterable(check(train_frames) for check in LABEL_CHECKS):
        if finding.severity != "info":
            say(f"Data, {finding.severity}: {finding.message} (clebsch check says more)")
    numbers = sorted({int(z) for frame in train_frames for z in frame.numbers})
    species = [chemical_symbols[z] for z in numbers]
    start = None if config.initial is None else load_start(config, species, say)
    if start is not None and config.data.references in ("auto", "fit"):
        of_species = dict(zip(start.species, start.references.tolist(), strict=True))
        references, origin = {symbol: of_species[symbol] for symbol in species}, "initial"
    else:
        references, origin = choose_references(config.data, train_frames, known, species, say)
    if start is None:
        start = _built(config, train_frames, references, say)
    else:
        for symbol, energy in references.items():
            start.references[start.species.index(symbol)] = energy
    potential = start.to(device).use_backend()
    train = LabelledGraphs(potential, train_frames)
    distances, depths = _trained_before(potential, train, config.initial is not None)
    if origin == "initial" and config.data.references == "auto":
        _compare_levels(potential, train, references, known, say)
    elif origin == "initial" and train.counts["energies"]:
        references, origin = _fitted_anew(potential, train, references, say), "fit"
    prepared = Prepared(
        potential,
        train,
        LabelledGraphs(potential, valid_frames),
        references,
        origin,
        _fitted(config.data, references, origin, known),
        "" if config.initial is None else checksums(config.initial)[str(config.initial)],
        distances,
        depths,
        _replay(config, potential, train),
    )
    _check_labels(config, prepared)
    _describe(prepared, say)
    _warn_of_known(train_frames, valid_frames, say)
    _advise(config, len(train_frames), say)
    return prepared


def _trained_before(
    potential: Potential, train: LabelledGraphs, fine_tuned: bool
) -> tuple[dict[str, float] | None, torch.Tensor | None]:
    """Shortest distances and depths as ``Prepared`` has them; the potential is made ready for both.

    Its contact repulsion knows the new structures too, and it is without a floor while it learns:
    energies on the way may be anything.
    """
    before = potential.shortest_distances if fine_tuned else {}
    distances = None
    if before is not None:
        distances = closest([before, train.shortest_distances(potential.species)])
    if potential.contact is not None:
        if distances is None:
            potential.contact.distances.zero_()
        else:
            potential.contact.learn(pair_table(distances, potential.species))
    if potential.floor is None:
        return distances, None
    depths = potential.floor.depths.clone()
    potential.floor.depths.fill_(UNKNOWN)
    return distances, None if distances is None else depths


def _replay(config: Config, potential: Potential, train: LabelledGraphs) -> Replay | None:
    """What the configuration says is not to be forgotten."""
    if config.replay is None:
        return None
    size, edges = config.training.batch_size, config.training.batch_edges
    steps = len(BatchSampler(train.n_edges, size, edges, config.seed).epoch(0))
    return prepare_replay(
        config.replay, potential, size or math.ceil(len(train) / steps), BATCH_EDGES, config.seed
    )


def _fitted_anew(
    potential: Potential, graphs: LabelledGraphs, references: dict[str, float], say: Say
) -> dict[str, float]:
    """References with which a potential leaves the least of the energies; they become its own.

    Its network has energies of its own, so that references fitted to total energies would count
    what binds atoms twice.
    """
    batches = BatchSampler(graphs.n_edges, batch_edges=BATCH_EDGES).in_order()
    _, residuals, _ = energy_residuals(potential, graphs, batches)
    frames = [graphs.frames[i] for batch in batches for i in batch]
    labelled = [frame for frame in frames if frame.energy is not None]
    left = [replace(f, energy=float(r)) for f, r in zip(labelled, residuals, strict=True)]
    fit = fit_references(left)
    say(f"To what the initial model leaves of the energies, {fit.describe()}")
    for symbol, shift in fit.energies.items():
        references = references | {symbol: references[symbol] + shift}
        potential.references[potential.species.index(symbol)] += shift
    return references


def _fitted(
    config: DataConfig, references: dict[str, float], origin: str, known: dict[str, float]
) -> frozenset[str]:
    if origin != "fit":
        return frozenset()
    return frozenset(references) - (known.keys() if config.references == "auto" else set())


def _built(
    config: Config, frames: Sequence[Frame], references: dict[str, float], say: Say
) -> Potential:
    """A potential with random weights and the data's statistics."""
    statistics = compute_statistics(frames, references, config.model.cutoff)
    if "avg_num_neighbors" in statistics.assumed:
        raise DataError(
            f"no structure to train on has two atoms within the cut-off of {config.model.cutoff:g} "
            "Angstrom: there is nothing to learn from (model.cutoff)"
        )
    mean = statistics.mean_interaction_energy
    if abs(mean) > MOST_BINDING and config.model.mean_energy_form == "density":
        say(
            f"The mean energy less references is {mean:.4g} eV an atom, more than binds atoms. The "
            "model makes it depend on the density of neighbours (model.mean_energy), and forces of "
            "it: references that belong to these energies (data.references=fit) do without"
        )
    if statistics.assumed:
        assumed = ", ".join(f"{name} {getattr(statistics, name):g}" for name in statistics.assumed)
        say(f"Not to be measured on these structures, so assumed: {assumed}")
    return clebsch.build(
        config.model,
        list(references),
        references=references,
        statistics=statistics,
        dtype=getattr(torch, config.dtype),
        seed=config.seed,
    )


def load_start(config: Config, species: Sequence[str], say: Say) -> Potential:
    """The potential that training starts from, with weights that can be trained.

    Its precision is that of the training; where the file has another, that is said.

    Raises:
        ModelFileError: its file cannot be read, or it answers wrongly here.
        UnknownElementError: it does not know an element of the training data.
    """
    assert config.initial is not None
    potential = load(config.initial, dtype=getattr(torch, config.dtype))
    for symbol in species:
        if symbol not in potential.species:
            where, model = "in the training data", f"the initial model {config.initial}"
            raise unknown_element(symbol, where, potential.species, model)
    stored = str(read_potential(config.initial)[0].dtype).removeprefix("torch.")
    if stored != config.dtype:
        say(
            f"The initial model is of {stored}, and training goes on in {config.dtype}; "
            f"dtype={stored} keeps its precision"
        )
    return potential.requires_grad_()


def _compare_levels(
    potential: Potential,
    graphs: LabelledGraphs,
    own: dict[str, float],
    known: dict[str, float],
    say: Say,
) -> None:
    """Say so where the data are of another level of theory than the model whose references stay.

    Isolated atoms tell; without them, energies that other references would bring to the model's.
    """
    off = {s: known[s] - energy for s, energy in own.items() if s in known}
    far = [symbol for symbol, difference in off.items() if abs(difference) > 0.01]
    if far:
        shown = ", ".join(f"{symbol} by {off[symbol]:+.3f} eV" for symbol in far)
        say(
            f"The data's isolated atoms differ from the model's references ({shown}), which are "
            "kept; data.references=isolated takes the data's"
        )
    elif graphs.counts["energies"]:
        _compare_energies(potential, graphs, say)


def _compare_energies(potential: Potential, graphs: LabelledGraphs, say: Say) -> None:
    """Say so where other references would mend most of what the model's energies are off."""
    labelled = [i for i, frame in enumerate(graphs.frames) if frame.energy is not None]
    chosen = labelled[:: math.ceil(len(labelled) / ASKED)]
    counts, residuals, _ = energy_residuals(potential, graphs, [[i] for i in chosen])
    off = float(np.sqrt(np.square(residuals / counts.sum(axis=1)).mean()))
    if not SAME_LEVEL < off < math.inf:
        return
    differences = zip(chosen, residuals, strict=True)
    fit = fit_references([replace(graphs.frames[i], energy=float(r)) for i, r in differences])
    if fit.residual_rms < off / 5:
        say(
            f"The data's energies are off the model's by {off:.3g} eV/atom rms, of which other "
            f"references would leave {fit.residual_rms:.2g}. The model's are kept; if the data are "
            "of another level of theory, data.references=fit takes references from them"
        )


def read_data(config: DataConfig, seed: int) -> tuple[list[Frame], list[Frame], dict[str, float]]:
    """Training frames, validation frames, and the energies of isolated atoms found anywhere."""
    read, census = read_with_census(config.train, config.keys, pbc=config.pbc)
    if not any(frame.has_labels for frame in read):
        if left_out := describe_left_out(read):
            raise DataError(
                f"{_names(config.train)}: no structure has a label of a weight above 0 "
                f"({left_out} of weight 0)"
            )
        raise DataError(
            f"{_names(config.train)}: no structure has an energy, forces or a stress under a usual "
            f"name ({census.describe()}); say where they are: data.keys.energy=KEY, "
            "data.keys.forces=KEY, data.keys.stress=KEY"
        )
    frames = isolated_atoms(read)[1]
    everything = list(read)
    if config.isolated_atoms is not None:
        # forces of a lone atom say nothing, and its file need not have them
        unread = {label: NOT_READ for label in ALIASES if label != "energy"}
        keys = config.keys.model_copy(update=unread)
        atoms = read_frames(config.isolated_atoms, keys, pbc=config.pbc)
        rest = isolated_atoms(atoms)[1]
        if rest:
            raise DataError(f"{where(rest[0].source)}: not an isolated atom with an energy")
        everything = [*atoms, *everything]
    if not frames:
        raise DataError(f"{_names(config.train)}: no structures to train on but isolated atoms")
    if config.valid is not None:
        judged = read_frames(config.valid, config.keys, pbc=config.pbc)
        valid = isolated_atoms(judged)[1]
        everything += judged
        if not valid:
            raise DataError(f"{_names(config.valid)}: no structures to validate on")
    else:
        frames, valid = split_frames(
            frames, fraction=config.valid_fraction, count=config.valid_count, seed=seed
        )
    if config.train_count is not None:
        frames = draw_frames(frames, config.train_count, seed, "data.train_count")
    # of all files together, so that none contradicts another
    return frames, valid, isolated_atoms(everything)[0]


def choose_references(
    config: DataConfig,
    frames: Sequence[Frame],
    known: dict[str, float],
    species: Sequence[str],
    say: Say,
) -> tuple[dict[str, float], str]:
    """Reference energies in eV by element, and where they are from.

    Raises:
        DataError: isolated atoms were asked for and some are missing.
        ConfigError: given references miss an element.
    """
    if isinstance(config.references, dict):
        missing = [symbol for symbol in species if symbol not in config.references]
        if missing:
            raise ConfigError(f"data.references has no energy for {', '.join(missing)}")
        return {symbol: config.references[symbol] for symbol in species}, "given"
    if config.references == "none":
        return dict.fromkeys(species, 0.0), "none"
    missing = [symbol for symbol in species if symbol not in known]
    if config.references == "isolated" or (config.references == "auto" and not missing):
        if missing:
            raise DataError(
                f"data.references is isolated, but there is no isolated atom of "
                f"{', '.join(missing)} with an energy in the data"
            )
        return {symbol: known[symbol] for symbol in species}, "isolated"
    if all(frame.energy is None for frame in frames):
        say("No energies to train on: references are zero, and so is the meaning of energies.")
        return dict.fromkeys(species, 0.0), "none"
    if len(missing) < len(species) and config.references == "auto":
        say(
            f"No isolated atom of {', '.join(missing)} with an energy in the data: to be fitted "
            "beside the others (data.isolated_atoms, data.references=fit)"
        )
    fit = fit_references(frames, known if config.references == "auto" else None)
    text = fit.describe()
    say(text[:1].upper() + text[1:])
    return {symbol: fit.energies[symbol] for symbol in species}, "fit"


def _check_labels(config: Config, prepared: Prepared) -> None:
    if not trainable_counts(prepared.train.counts, config.loss):
        raise DataError(
            f"{_names(config.data.train)}: no structure has a label that the loss has a weight for"
        )
    metric = config.training.metric
    needed = {"energy": "energies", "forces": "forces", "stress": "stresses"}
    label = needed.get(metric.split("_")[0])
    counts = prepared.valid.counts
    if label is not None and not counts[label]:
        raise ConfigError(f"training.metric is {metric}, but no validation structure has {label}")
    if label is None and not trainable_counts(counts, config.loss):
        raise DataError("no validation structure has a label that the loss has a weight for")


def _describe(prepared: Prepared, say: Say) -> None:
    for name, graphs in (("Training", prepared.train), ("Validation", prepared.valid)):
        say(
            f"{name}: {describe_counts(graphs.counts)}; "
            f"{sum(graphs.n_edges)} edges, {graphs.n_bytes / 1e6:.1f} MB of graphs"
        )
        left_out = describe_left_out(graphs.frames)
        if left_out:
            say(f"{name}: labels of weight 0 count as missing: {left_out}")
        weights = describe_weights(graphs.frames)
        if weights:
            say(f"{name}: weights other than 1 are used: {weights}")
    if prepared.replay is not None:
        learnt, held_out = prepared.replay.train, prepared.replay.valid
        say(
            f"Replay: {len(learnt)} structures with the initial model's own energies and forces, "
            f"{prepared.replay.sampler.batch_size} in a step; {len(held_out)} more tell what is "
            "forgotten"
        )
    mixed = 0 < len(prepared.fitted) < len(prepared.references)
    shown = ", ".join(
        f"{symbol} {energy:.6f}{' isolated' if mixed and symbol not in prepared.fitted else ''}"
        for symbol, energy in prepared.references.items()
    )
    say(f"References ({prepared.origin}): {shown} eV")
    potential = prepared.potential
    say(
        f"Potential: {potential.config.name}, {potential.n_parameters} parameters, "
        f"{potential.backend} backend"
    )
    if isinstance(potential.config, MessagePassingConfig) and potential.config.idle_settings:
        idle = ", ".join(f"model.{name}" for name in potential.config.idle_settings)
        say(f"Settings that do nothing beside the others: {idle}")


def _warn_of_known(train: Sequence[Frame], valid: Sequence[Frame], say: Say) -> None:
    """Say so where structures that validate are trained on."""

    def content(frame: Frame) -> tuple[bytes, ...]:
        return tuple(array.tobytes() for array in frame.structure)

    trained = {content(frame) for frame in train}
    known = [frame for frame in valid if content(frame) in trained]
    if known:
        say(
            f"{len(known)} of {len(valid)} validation structures are training structures too, "
            f"{known[0].source} for one: errors of validation are too small"
        )


def _advise(config: Config, n_train: int, say: Say) -> None:
    """Say so where smaller steps learn better, as was measured with the default recipe."""
    steps_are_large = config.training.batch_size != 1 and config.recipe == DEFAULT_RECIPE
    is_new = config.initial is None and not config.is_linear
    if n_train <= FEW and steps_are_large and is_new:
        say(
            f"{n_train} structures are few: training.batch_size=1, and model=mace_few, may learn "
            "more from them (docs/few-structures.md)"
        )


def _names(paths: Path | Sequence[Path]) -> str:
    return str(paths) if isinstance(paths, Path) else ", ".join(str(path) for path in paths)
