"""Published data sets are found, verified, and fetched whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from clebsch.cli import main
from clebsch.data.datasets import (
    DataSet,
    as_published,
    data_set,
    data_sets,
    find_files,
    required_files,
)
from clebsch.data.download import download, unpack, unpack_rmd17
from clebsch.data.read import read_frames
from clebsch.errors import ClebschError, ConfigError, DataError


def water(seed: int, energy: float = -2000.0) -> Atoms:
    rng = np.random.default_rng(seed)
    atoms = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.2, 0.93, 0]])
    atoms.positions += rng.normal(0, 0.05, (3, 3))
    atoms.calc = SinglePointCalculator(
        atoms, energy=energy + rng.normal(), forces=rng.normal(size=(3, 3))
    )
    return atoms


def xyz(frames: list[Atoms]) -> bytes:
    text = io.StringIO()
    write(text, frames, format="extxyz")
    return text.getvalue().encode()


FRAMES = [water(seed) for seed in range(5)]
CONTENT = xyz(FRAMES)
ENERGIES = np.array([atoms.get_potential_energy() for atoms in FRAMES])
FORCES = np.array([atoms.get_forces() for atoms in FRAMES])
FACTS = {
    "about": "water",
    "frames": 5,
    "formulas": ["H2O"],
    "energy_mean": float(ENERGIES.mean()),
    "energy_std": float(ENERGIES.std()),
    "forces_rms": float(np.sqrt(np.mean(FORCES**2))),
    "sha256": hashlib.sha256(CONTENT).hexdigest(),
}


def one_file(**changes: object) -> DataSet:
    return DataSet.model_validate(
        {
            "title": "Water",
            "source": "a paper",
            "licence": "CC0",
            "folders": ["water", "dataset_water"],
            "files": {"train": FACTS | changes},
        }
    )


@pytest.mark.parametrize("place", ["", "water", "dataset_water"])
@pytest.mark.parametrize("suffix", [".xyz", ".xyz.xz", ".extxyz"])
def test_files_are_found_where_they_usually_lie(tmp_path: Path, place: str, suffix: str) -> None:
    path = tmp_path / place / f"train{suffix}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(lzma.compress(CONTENT) if suffix.endswith("xz") else CONTENT)
    found = find_files(one_file(), tmp_path)["train"]
    assert (found.path, found.verdict) == (path, "exact")
    assert required_files(one_file(), tmp_path, ["train"]) == {"train": path}


def test_other_bytes_with_the_same_structures_will_do(tmp_path: Path) -> None:
    (tmp_path / "train.xyz").write_bytes(CONTENT.replace(b"pbc=", b"remark=none pbc="))
    assert find_files(one_file(), tmp_path)["train"].verdict == "same"


def test_a_missing_file_is_told_with_where_to_get_it(tmp_path: Path) -> None:
    assert find_files(one_file(), tmp_path)["train"].verdict == "missing"
    with pytest.raises(DataError, match=r"train.xyz is in none of .*water.*published at a paper"):
        required_files(one_file(), tmp_path, ["train"])
    with pytest.raises(DataError, match="no such folder"):
        find_files(one_file(), tmp_path / "nowhere")


def scaled(factor: float) -> list[Atoms]:
    frames = []
    for atoms in FRAMES:
        other = atoms.copy()
        results = {key: factor * value for key, value in atoms.calc.results.items()}
        other.calc = SinglePointCalculator(other, **results)
        frames.append(other)
    return frames


@pytest.mark.parametrize(
    ("frames", "problem"),
    [
        (FRAMES[:4], "4 structures instead of 5"),
        ([*FRAMES[:4], Atoms("H")], "structures of H, H2O, not of H2O"),
        (scaled(1 / (units.kcal / units.mol)), "energies in kcal/mol"),
        ([water(seed, -2001.0) for seed in range(5)], "a mean energy of -2000.*instead of -1999"),
        ([*FRAMES[:4], FRAMES[0]], "energies that spread by|a mean energy"),
        ([*FRAMES[:4], Atoms("OH2", np.eye(3))], "1 structures without energy"),
    ],
)
def test_what_is_not_the_published_file_is_told(
    tmp_path: Path, frames: list[Atoms], problem: str
) -> None:
    (tmp_path / "train.xyz").write_bytes(xyz(frames))
    with pytest.raises(DataError, match=rf"train.xyz: not the published file: .*{problem}"):
        find_files(one_file(), tmp_path)


def test_other_forces_are_told(tmp_path: Path) -> None:
    (tmp_path / "train.xyz").write_bytes(CONTENT)
    facts = one_file(sha256=None, forces_rms=2.0)
    with pytest.raises(DataError, match=r"square instead of 2\.0000"):
        find_files(facts, tmp_path)


def test_a_broken_archive_is_told(tmp_path: Path) -> None:
    (tmp_path / "train.xyz.xz").write_bytes(lzma.compress(CONTENT)[:-20])
    with pytest.raises(DataError, match=r"train\.xyz\.xz: cannot be read"):
        find_files(one_file(), tmp_path)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a server on this machine, and the folder that it serves."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}", folder
        http.shutdown()
        thread.join()


def test_what_is_missing_is_fetched_once_and_verified(
    tmp_path: Path, server: tuple[str, Path]
) -> None:
    url, served = server
    (served / "train.xyz").write_bytes(CONTENT)
    seen: list[tuple[int, int | None, str]] = []
    data = one_file(url=f"{url}/train.xyz")
    paths = download(data, tmp_path / "new", lambda *done: seen.append(done))
    assert paths == [tmp_path / "new" / "water" / "train.xyz"]
    assert paths[0].read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT), "train")
    assert download(data, tmp_path / "new") == []
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["water"]


def test_another_file_than_the_published_one_is_not_kept(
    tmp_path: Path, server: tuple[str, Path]
) -> None:
    url, served = server
    (served / "train.xyz").write_bytes(xyz(FRAMES[:3]))
    with pytest.raises(DataError, match="3 structures instead of 5"):
        download(one_file(url=f"{url}/train.xyz"), tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_what_cannot_be_fetched_is_told_unless_it_is_optional(
    tmp_path: Path, server: tuple[str, Path]
) -> None:
    url, _ = server
    with pytest.raises(ClebschError, match=r"train.xyz: cannot be downloaded .*--from FOLDER"):
        download(one_file(url=f"{url}/train.xyz"), tmp_path / "new")
    assert download(one_file(url=f"{url}/train.xyz", optional=True), tmp_path / "new") == []


def rmd17_of_water() -> dict[str, bytes]:
    """What the archive of the revised MD17 would hold of water, by path."""
    kcal = units.kcal / units.mol
    arrays = {
        "nuclear_charges": FRAMES[0].numbers,
        "coords": np.array([atoms.positions for atoms in FRAMES]),
        "energies": ENERGIES / kcal,
        "forces": FORCES / kcal,
    }
    content = io.BytesIO()
    np.savez(content, **arrays)
    return {
        "rmd17/npz_data/rmd17_water.npz": content.getvalue(),
        "rmd17/splits/index_train_01.csv": b"3\n0\n",
        "rmd17/splits/index_test_01.csv": b"4\n",
    }


def packed(archive: Path) -> Path:
    with tarfile.open(archive, "w:bz2") as tar:
        for name, data in rmd17_of_water().items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return archive


def unpacked(folder: Path) -> Path:
    for name, data in rmd17_of_water().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def like_rmd17() -> DataSet:
    """A set of two molecules that is published as an archive; nobody has benzene."""
    files = {
        f"{molecule}/{part}": {"about": part, "frames": frames, "formulas": [formula]}
        for molecule, formula in (("water", "H2O"), ("benzene", "C6H6"))
        for part, frames in (("train_01", 2), ("test_01", 1))
    }
    entry = {"title": "T", "source": "a paper", "licence": "CC0", "folders": ["rmd17"]}
    return DataSet.model_validate(entry | {"archive": "http://nowhere", "files": files})


@pytest.mark.parametrize("inner", ["", "rmd17"])
def test_what_there_is_of_the_unpacked_archive_is_taken(tmp_path: Path, inner: str) -> None:
    source = unpacked(tmp_path / "official") / inner
    paths = unpack(like_rmd17(), source, tmp_path / "data")
    water = tmp_path / "data" / "rmd17" / "water"
    assert sorted(paths) == [water / "test_01.xyz", water / "train_01.xyz"]
    train = read_frames(water / "train_01.xyz")
    assert [frame.energy for frame in train] == pytest.approx([ENERGIES[3], ENERGIES[0]], abs=1e-6)
    with pytest.raises(ClebschError, match=r"holds nothing of what is missing.*index_train_01"):
        unpack(like_rmd17(), source, tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["rmd17"]


def test_the_archive_at_hand_is_taken_instead_of_a_download(tmp_path: Path) -> None:
    archive = packed(tmp_path / "rmd17.tar.bz2")
    water = like_rmd17()
    files = {name: one for name, one in water.files.items() if name.startswith("water")}
    water = water.model_copy(update={"files": files})
    assert len(unpack(water, archive, tmp_path / "data")) == 2
    with pytest.raises(ClebschError, match="has no molecule benzene"):
        unpack(like_rmd17(), archive, tmp_path / "data")
    with pytest.raises(DataError, match="no such file or folder"):
        unpack(like_rmd17(), tmp_path / "nowhere", tmp_path / "data")
    with pytest.raises(ConfigError, match="water is published as single files"):
        unpack(one_file(), tmp_path, tmp_path / "data")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("splits/index_test_01.csv", b"5\n", "test_01 of water: .*out of bounds"),
        ("splits/index_test_01.csv", b"four\n", "index_test_01.csv: no list of rows"),
        ("npz_data/rmd17_water.npz", b"PK not a zip", "test_01 of water|train_01 of water"),
    ],
)
def test_a_broken_part_of_the_unpacked_archive_is_told(
    tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    source = unpacked(tmp_path / "official")
    (source / "rmd17" / name).write_bytes(content)
    with pytest.raises(ClebschError, match=problem):
        unpack(like_rmd17(), source, tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


def test_a_folder_of_published_arrays_is_told_what_makes_files_of_them(tmp_path: Path) -> None:
    source = unpacked(tmp_path / "official")
    for folder in (source, source / "rmd17", source / "rmd17" / "npz_data"):
        assert f"clebsch data rmd17 --from {folder} --to data" in as_published(like_rmd17(), folder)
    with pytest.raises(DataError, match=r"clebsch data rmd17 --from .*official --to data"):
        required_files(like_rmd17(), source, ["water/train_01"])
    assert not as_published(one_file(), source)
    assert not as_published(like_rmd17(), tmp_path)


@pytest.mark.parametrize("digits", [23.06, 23.0605, 23.061])
def test_a_calorie_of_fewer_digits_is_the_published_file_still(
    tmp_path: Path, digits: float
) -> None:
    (tmp_path / "train.xyz").write_bytes(xyz(scaled(units.mol / units.kcal / digits)))
    assert find_files(one_file(), tmp_path)["train"].verdict == "same"


def test_rmd17_is_unpacked_into_splits_in_ev(tmp_path: Path) -> None:
    archive = packed(tmp_path / "rmd17.tar.bz2")
    unpack_rmd17(archive, tmp_path, ["water/train_01", "water/test_01"])
    train = read_frames(tmp_path / "water" / "train_01.xyz")
    assert [frame.energy for frame in train] == pytest.approx([ENERGIES[3], ENERGIES[0]], abs=1e-6)
    assert train[0].forces == pytest.approx(FORCES[3], abs=1e-7)
    assert len(read_frames(tmp_path / "water" / "test_01.xyz")) == 1
    with pytest.raises(ClebschError, match="no molecule benzene"):
        unpack_rmd17(archive, tmp_path, ["benzene/train_01"])
    with pytest.raises(ClebschError, match="no split train_02"):
        unpack_rmd17(archive, tmp_path, ["water/train_02"])
    with pytest.raises(ClebschError, match="cannot be unpacked"):
        unpack_rmd17(tmp_path / "water" / "train_01.xyz", tmp_path, ["water/train_01"])


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'rmd17'"):
        data_set("md17")


def test_every_set_says_where_it_is_from() -> None:
    for name, data in data_sets().items():
        assert data.source
        assert data.licence
        assert data.folders[0] == name
        assert data.archive or all(one.url or one.optional for one in data.files.values())


def test_the_command_finds_lists_and_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def status(*arguments: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["data", *arguments])
        return int(ended.value.code or 0)

    assert status() == 0
    assert "rmd17" in capsys.readouterr().out
    assert status("acac") == 2
    assert status("acac", "--from", str(tmp_path), "--json") == 1
    assert json.loads(capsys.readouterr().out)["complete"] is False


@pytest.mark.parametrize("name", ["3bpa", "acac", "ethanol"])
def test_the_shared_data_are_what_was_published(shared_data: Path, name: str) -> None:
    data = data_set(name)
    for key, found in find_files(data, shared_data).items():
        if data.files[key].sha256 is not None:
            assert found.verdict == "exact", key
