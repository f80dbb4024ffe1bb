"""Model files are faithful, and damaged or foreign ones are refused."""

from __future__ import annotations

import json
import pickle
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch

import clebsch
from builders import MODELS, ethanol, potential, skewed_cell
from clebsch.errors import BackendError, ConfigError, ModelFileError
from clebsch.modelfile import model_heads, read_tensors, save_heads, write_tensors


@pytest.mark.parametrize("model", list(MODELS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_save_and_load_give_the_same_potential(
    model: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    saved = potential(model, dtype)
    saved.save(tmp_path / "model.safetensors", provenance={"trained on": "nothing"})
    loaded = clebsch.load(tmp_path / "model.safetensors")
    assert loaded.config == saved.config
    assert loaded.species == saved.species
    assert loaded.dtype == dtype
    assert loaded.provenance == {"trained on": "nothing"}
    assert loaded.backend == "llvm"
    stored = saved.state_dict()
    assert all(torch.equal(stored[name], tensor) for name, tensor in loaded.state_dict().items())
    saved.requires_grad_(False)  # as loaded ones are; torch orders some sums by it
    for structure in (ethanol(), skewed_cell()):
        before = saved(saved.graph(structure))
        after = loaded(loaded.graph(structure))
        assert torch.equal(before.energy, after.energy)
        assert torch.equal(before.forces, after.forces)


def test_a_model_can_be_loaded_in_another_precision(tmp_path: Path) -> None:
    saved = potential(dtype=torch.float32)
    saved.save(tmp_path / "model.safetensors", reference=ethanol())
    loaded = clebsch.load(tmp_path / "model.safetensors", dtype=torch.float64)
    assert loaded.dtype == torch.float64
    assert torch.equal(loaded.references, saved.references)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    potential().save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_a_precision_by_name_is_told_what_it_should_be(file: Path) -> None:
    with pytest.raises(ModelFileError, match=r"torch\.float64, .*, not 'float64'"):
        clebsch.load(file, dtype="float64")  # type: ignore[arg-type]


def test_every_flipped_bit_is_found(file: Path) -> None:
    original = file.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(original), 40):
        damaged = bytearray(original)
        damaged[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        with pytest.raises(ModelFileError, match=r"model\.safetensors"):
            clebsch.load(file)


def test_ctrl_c_while_a_file_is_read_is_no_damage(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library turns it into an error of its own, and damaged training states are removed."""

    @contextmanager
    def interrupted(*_: Any, **__: Any) -> Iterator[None]:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise safetensors.SafetensorError("interrupted") from None
        with original(str(file), framework="pt") as opened:
            yield opened

    original = safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        clebsch.load(file)


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, 0.999])
def test_a_truncated_file_is_refused(file: Path, keep: float) -> None:
    original = file.read_bytes()
    file.write_bytes(original[: keep if isinstance(keep, int) else int(keep * len(original))])
    with pytest.raises(ModelFileError, match="not a readable safetensors file"):
        clebsch.load(file)


def test_a_header_that_lies_about_sizes_is_refused(tmp_path: Path) -> None:
    header = {"x": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}
    text = json.dumps(header).encode()
    (tmp_path / "huge.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(ModelFileError):
        clebsch.load(tmp_path / "huge.safetensors")


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (Path(tmp_path / "executed").touch, ())

    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ModelFileError):
        clebsch.load(tmp_path / "model.safetensors")
    assert not (tmp_path / "executed").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"nowhere\.safetensors: no such file"):
        clebsch.load(tmp_path / "nowhere.safetensors")


def test_foreign_and_newer_files_are_told_apart(tmp_path: Path, file: Path) -> None:
    import safetensors.torch

    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(1)}, foreign)
    with pytest.raises(ModelFileError, match="not one that Clebsch wrote"):
        clebsch.load(foreign)
    tensors, metadata = read_tensors(file)
    write_tensors(foreign, tensors, {**metadata, "format": "something else"})
    with pytest.raises(ModelFileError, match="not a potential"):
        clebsch.load(foreign)
    write_tensors(foreign, tensors, {**metadata, "format_version": 99})
    with pytest.raises(ModelFileError, match="newer than this Clebsch"):
        clebsch.load(foreign)


def test_a_potential_that_answers_differently_is_refused(file: Path, tmp_path: Path) -> None:
    """Weights and answers that do not belong together, though every checksum is right."""
    tensors, metadata = read_tensors(file)
    name = "model.embedding"
    tensors[name] = tensors[name] * 1.01
    write_tensors(tmp_path / "forged.safetensors", tensors, metadata)
    with pytest.raises(ModelFileError, match="does not reproduce the stored"):
        clebsch.load(tmp_path / "forged.safetensors")


@pytest.mark.parametrize("name", ["energy", "forces", "stress"])
def test_every_stored_answer_is_verified(file: Path, tmp_path: Path, name: str) -> None:
    tensors, metadata = read_tensors(file)
    answers = metadata["reference"]
    answers[name] = (np.array(answers[name]) + 1).tolist()
    write_tensors(tmp_path / "forged.safetensors", tensors, metadata)
    with pytest.raises(ModelFileError, match=f"does not reproduce the stored {name} of"):
        clebsch.load(tmp_path / "forged.safetensors")


@pytest.mark.parametrize("name", ["model.embedding", "head.references"])
def test_a_potential_that_is_not_finite_is_not_written(file: Path, name: str) -> None:
    broken, before = potential(), file.read_bytes()
    broken.state_dict()[name].view(-1)[0] = float("nan")
    message = rf"model\.safetensors: not written: {name} of the potential holds NaN or infinity"
    with pytest.raises(ModelFileError, match=message):
        broken.save(file)
    with pytest.raises(ModelFileError, match=message):
        save_heads({"good": potential(), "broken": broken}, file)
    assert file.read_bytes() == before


def test_a_file_of_a_model_that_diverged_is_not_blamed_on_the_machine(
    file: Path, tmp_path: Path
) -> None:
    """Such as earlier versions wrote."""
    tensors, metadata = read_tensors(file)
    path, nan = tmp_path / "old.safetensors", float("nan")
    write_tensors(path, {**tensors, "model.embedding": tensors["model.embedding"] * nan}, metadata)
    with pytest.raises(BackendError, match=r"old\.safetensors.*model\.embedding holds NaN"):
        clebsch.load(path)
    references = tensors["head.references"] * nan
    metadata["reference"]["energy"] = nan
    write_tensors(path, {**tensors, "head.references": references}, metadata)
    with pytest.raises(ModelFileError, match="stored in it are not finite numbers"):
        clebsch.load(path)


def test_weights_of_another_shape_are_refused(file: Path, tmp_path: Path) -> None:
    tensors, metadata = read_tensors(file)
    metadata["config"]["channels"] = 5
    write_tensors(tmp_path / "other.safetensors", tensors, metadata)
    with pytest.raises(ModelFileError, match="do not fit the configuration"):
        clebsch.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cuda:99", "the device 'cuda:99' cannot be used: "),
        (torch.device("cuda", 99), "the device 'cuda:99' cannot be used: "),
        ("gpu", "unknown device 'gpu': cpu, cuda or cuda:1"),
    ],
)
def test_a_device_that_is_not_here_is_said_before_the_file_is_read(
    tmp_path: Path, device: torch.device | str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        clebsch.load(tmp_path / "absent.safetensors", device=device)


@pytest.fixture
def two_heads(tmp_path: Path) -> tuple[Path, dict[str, clebsch.Potential]]:
    """A file of two heads, which differ in readouts and references."""
    low, high = potential(), potential()
    with torch.no_grad():
        high.head.references += 1.5
        for parameter in high.model.readouts.parameters():
            parameter *= -1
    low.provenance = {"level": "low"}
    heads = {"low": low, "high/dz": high}
    save_heads(heads, tmp_path / "heads.safetensors")
    return tmp_path / "heads.safetensors", heads


def test_heads_are_kept_in_one_file(two_heads: tuple[Path, dict[str, clebsch.Potential]]) -> None:
    path, heads = two_heads
    assert model_heads(path) == list(heads)
    energies = set()
    for name, saved in heads.items():
        loaded = clebsch.load(path, head=name)
        assert loaded.provenance == saved.provenance
        stored = saved.state_dict()
        assert set(stored) == set(loaded.state_dict())
        assert all(torch.equal(stored[key], value) for key, value in loaded.state_dict().items())
        energies.add(float(loaded(loaded.graph(ethanol())).energy))
    assert len(energies) == 2
    heads["low"].save(path.with_name("one.safetensors"))
    of_both, of_one = (read_tensors(file)[0] for file in (path, path.with_name("one.safetensors")))
    sizes = [sum(tensor.numel() for tensor in tensors.values()) for tensors in (of_both, of_one)]
    own = ("head.references", "model.readouts")
    assert sizes[0] - sizes[1] == sum(
        tensor.numel() for name, tensor in of_one.items() if name.startswith(own)
    )


def test_a_head_is_chosen_by_its_name(
    two_heads: tuple[Path, dict[str, clebsch.Potential]], file: Path
) -> None:
    path, _ = two_heads
    with pytest.raises(
        ConfigError, match=r"heads\.safetensors: the model has the heads low, high/dz"
    ):
        clebsch.load(path)
    with pytest.raises(ConfigError, match=r"no head 'hihg/dz'\. Did you mean 'high/dz'"):
        clebsch.load(path, head="hihg/dz")
    assert model_heads(file) == []
    with pytest.raises(ConfigError, match="no head 'low': the model has one head"):
        clebsch.load(file, head="low")


def test_every_head_answers_for_itself(
    two_heads: tuple[Path, dict[str, clebsch.Potential]],
) -> None:
    path, _ = two_heads
    tensors, metadata = read_tensors(path)
    tensors["heads.1.head.references"] += 1e-3
    write_tensors(path, tensors, metadata)
    clebsch.load(path, head="low")
    with pytest.raises(ModelFileError, match="does not reproduce the stored energy"):
        clebsch.load(path, head="high/dz")


def test_potentials_that_are_no_heads_of_one_model_are_refused(tmp_path: Path) -> None:
    one = potential()
    for heads in (
        {},
        {"a": one, "b": potential(dtype=torch.float32)},
        {"a": one, "b": potential("nequip")},
    ):
        with pytest.raises(ConfigError, match="one architecture"):
            save_heads(heads, tmp_path / "heads.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    before = file.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        potential(seed=2).save(file)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_file_of_format_version_1_still_loads() -> None:
    """Written once by version 0.1.0 and kept: what it said then it must say for ever."""
    path = Path(__file__).parent / "data_files" / "potential_v1.safetensors"
    loaded = clebsch.load(path)
    assert float(loaded(loaded.graph(ethanol()), ("energy",)).energy) == pytest.approx(
        json.loads(path.with_suffix(".json").read_text())["ethanol_energy"], abs=1e-8
    )
