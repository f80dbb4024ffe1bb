"""Extended XYZ: what ASE writes is read as ASE reads it, and nothing broken passes."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest
from ase.io import iread
from ase.io import write as ase_write
from data_builders import copper, water_text, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clebsch.data.extxyz import iter_extxyz, parse_comment
from clebsch.data.read import read_frames
from clebsch.errors import DataError


def test_a_file_that_ase_wrote_is_read_as_ase_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "copper.xyz"
    ase_write(path, [copper(seed) for seed in range(3)])
    ours = read_frames(path)
    theirs = list(iread(path, index=":"))
    assert len(ours) == 3
    for frame, atoms in zip(ours, theirs, strict=True):
        assert np.array_equal(frame.numbers, atoms.numbers)
        assert np.array_equal(frame.positions, atoms.positions)
        assert np.array_equal(frame.cell, atoms.cell.array)
        assert np.array_equal(frame.pbc, atoms.pbc)
        assert frame.energy == atoms.get_potential_energy()
        assert np.array_equal(frame.forces, atoms.get_forces())
        np.testing.assert_allclose(frame.stress, atoms.get_stress(voigt=False), atol=1e-15)


def test_a_real_file_is_read_as_ase_reads_them(shared_data: Path) -> None:
    path = shared_data / "3bpa" / "test_1200K_proxy.xyz.xz"
    for frame, atoms in zip(read_frames(path), iread(path, index=":"), strict=True):
        assert frame.energy == atoms.get_potential_energy()
        assert np.array_equal(frame.positions, atoms.positions)
        assert np.array_equal(frame.forces, atoms.get_forces())
        assert np.array_equal(frame.cell, atoms.cell.array)
        assert not frame.pbc.any()


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        (".xz", lzma.compress),
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".XZ", lzma.compress),
    ],
)
def test_compressed_files_are_read_and_truncated_ones_refused(
    tmp_path: Path, suffix: str, compress: object
) -> None:
    payload = compress(water_text(50).encode())  # type: ignore[operator]
    path = tmp_path / f"water.xyz{suffix}"
    path.write_bytes(payload)
    assert len(read_frames(path)) == 50
    path.write_bytes(payload[: len(payload) * 2 // 3])
    with pytest.raises(DataError, match=r"water\.xyz\.\w+: frame \d+ .*(truncated|corrupt)"):
        read_frames(path)
    path.write_bytes(b"\x00" * 40)
    with pytest.raises(DataError, match=r"water\.xyz"):
        read_frames(path)


def test_a_file_cut_anywhere_gives_whole_frames_or_an_error(tmp_path: Path) -> None:
    text = water_text(2)
    boundary = text.index("3\nProperties", 5)
    for cut in range(1, len(text)):
        path = write(tmp_path / "cut.xyz", text[:cut])
        if cut in (boundary, boundary - 1, len(text) - 1):
            assert len(read_frames(path)) == (1 if cut <= boundary else 2)
            continue
        with pytest.raises(DataError, match=r"cut\.xyz: frame [01]"):
            read_frames(path)


@pytest.mark.parametrize("last", ["0.0", "1e-17", "0.12345678901234567", "-3"])
def test_a_complete_file_without_a_last_line_end_is_read(tmp_path: Path, last: str) -> None:
    """Programs that write as many digits as a number needs end a file with any number of them."""
    rows = ["H 0.1 0.25 0.3 0.4 0.5 0.1234567890123456", f"H 1.1 0.2 0.3 0.4 0.5 {last}"]
    text = "\n".join(["2", "Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.0", *rows])
    (frame,) = read_frames(write(tmp_path / "complete.xyz", text))
    assert frame.forces is not None
    assert frame.forces[1, 2] == float(last)


def test_a_hand_written_file_without_a_last_line_end_is_read(tmp_path: Path) -> None:
    (frame,) = iter_extxyz(write(tmp_path / "h2.xyz", "2\n\nH 0.0 0.0 0.74\nH 0.0 0.0 0.0"))
    assert frame.positions[:, 2].tolist() == [0.74, 0.0]


def test_a_blank_line_between_frames_hides_nothing(tmp_path: Path) -> None:
    text = water_text(1)
    path = write(tmp_path / "blank.xyz", text + "\n   \n" + text + "\n\n")
    assert len(read_frames(path)) == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("3\n", "-3\n", r"frame 0 \(line 1\): expected a number of atoms, found '-3'"),
        ("3\n", "0\n", r"frame 0 .* at least one atom"),
        ("3\n", "99999999999\n", r"frame 0 \(line 6\): atom 3: 1 columns where Properties names 7"),
        ("3\n", "9" * 400 + "\n", r"frame 0 .*number of atoms"),
        ("3\n", "three\n", r"frame 0 .*found 'three'"),
        ("0.00300000\n", "\n", r"frame 0 .*atom 0: 6 columns where Properties names 7"),
        ("0.00300000\n", "0.003 1\n", r"frame 0 .*atom 0: 8 columns where Properties names 7"),
        ("O 0.00000000", "O abc", r"frame 0 .*atom 0: pos is not a number: 'abc'"),
        ("O 0.00000000", "O 0_1", r"frame 0 .*atom 0: pos is not a number: '0_1'"),
        ("O 0.0", "Qq 0.0", r"frame 0 .*atom 0: 'Qq' is not an element$"),
        ("O 0.0", "C1 0.0", r"frame 0 .*'C1' is not an element\. Did you mean 'C'\?$"),
        ("O 0.0", "Xx 0.0", r"frame 0 .*'Xx' is not an element\. Did you mean 'Xe'\?$"),
        ("O 0.0", "X 0.0", r"frame 0 .*atom 0: 'X' is no element but a ghost or dummy atom"),
        ("pos:R:3", "pos:R:2", r"frame 0 .*7 columns where Properties names 6"),
        ("pos:R:3", "pos:R:-3", r"frame 0 .*Properties: 'pos' has '-3' columns"),
        ("pos:R:3", "pos:Q:3", r"frame 0 .*'pos' is 'Q'"),
        ("pos:R:3", "pos:R", r"frame 0 .*Properties is not name:type:columns"),
        ("pos:R:3", "xyz:R:3", r"frame 0 .*does not name pos:R:3"),
        ("species:S", "name:S", r"frame 0 .*neither species:S:1 nor Z:I:1"),
        (":forces:R:3", ":pos:R:3", r"frame 0 .*names 'pos' twice"),
        ('pbc="F F F"', 'pbc="F F"', r"frame 0 .*pbc is not three of T and F"),
        ('pbc="F F F"', 'pbc="F F F', r"frame 0 .*no end to the quote"),
        ('pbc="F F F"', 'Lattice="1 2 3"', r"frame 0 .*Lattice is not nine numbers"),
        ('pbc="F F F"', 'PBC="T T T"', r"frame 0 \(line 2\): .*'PBC' .*Did you mean 'pbc'\?$"),
        ('pbc="F F F"', 'lattice="9 0 0 0 9 0 0 0 9"', r"frame 0 .*'lattice'.*mean 'Lattice'\?$"),
        ("Properties", "properties", r"frame 0 .*'properties' .*Did you mean 'Properties'\?$"),
        ('pbc="F F F"', "tag=1 tag=2", r"frame 0 .*the key 'tag' stands twice, with different"),
        ('pbc="F F F"', 'a="_JSON [1,"', r"frame 0 .*not JSON"),
        ('pbc="F F F"', 'a="_JSON ' + "[" * 99999 + '"', r"frame 0 .*(not JSON|no end)"),
    ],
)
def test_malformed_frames_are_named_with_file_frame_and_line(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = write(tmp_path / "bad.xyz", water_text(2).replace(old, new, 1))
    with pytest.raises(DataError, match=r"bad\.xyz: " + message):
        read_frames(path)


def test_the_broken_frame_is_named_not_the_first(tmp_path: Path) -> None:
    text = water_text(1) + water_text(1).replace("0.96", "x.96")
    with pytest.raises(DataError, match=r"frame 1 \(line 9\): atom 1: pos is not a number"):
        read_frames(write(tmp_path / "bad.xyz", text))


def test_million_character_lines_end_quickly(tmp_path: Path) -> None:
    for line in ("x" * 2_000_000, '{"[' * 600_000, "a={ " * 500_000, "a=1 " * 500_000):
        for text in (line + "\n", f"1\nProperties=species:S:1:pos:R:3 {line}\nH 0 0 0\n"):
            path = write(tmp_path / "long.xyz", text)
            message = refusal(path)
            assert message is None or "long.xyz: frame 0" in message
            assert len(message or "") < 600


def refusal(path: Path) -> str | None:
    """What reading ``path`` complains of; None if it is read, into finite numbers."""
    try:
        frames = read_frames(path)
    except DataError as error:
        return str(error)
    for frame in frames:
        assert np.isfinite(frame.positions).all()
        assert frame.energy is None or np.isfinite(frame.energy)
        assert frame.forces is None or np.isfinite(frame.forces).all()
    return None


def test_values_of_the_comment_line() -> None:
    comment = (
        """a=1 b=2.5 c="1 2 3" d=T e="T F" f=text g="two words" flag h={1.0 2.0} """
        """i=[[1, 2], [3, 4]] j="_JSON {\\"k\\": [1, null]}" l = 'spaced' m=-1e-3 Lattice="q" """
    )
    info = parse_comment(comment)
    assert (info["a"], info["b"], info["d"], info["f"]) == (1, 2.5, True, "text")
    assert (info["g"], info["flag"], info["l"], info["m"]) == ("two words", True, "spaced", -1e-3)
    assert info["c"].tolist() == [1, 2, 3]
    assert info["e"].tolist() == [True, False]
    assert info["h"].tolist() == [1.0, 2.0]
    assert info["i"].tolist() == [1, 2, 3, 4]
    assert info["j"] == {"k": [1, None]}


def test_digits_with_underscores_are_text() -> None:
    info = parse_comment('config_type=10_20 path="1_0 2_0" energy=-1_0.5')
    assert info == {"config_type": "10_20", "path": "1_0 2_0", "energy": "-1_0.5"}


def test_a_key_may_stand_twice_with_one_value() -> None:
    assert parse_comment("a=1 Properties=species:S:1:pos:R:3 a=1")["a"] == 1


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "windows.xyz"
    path.write_bytes(b"\xef\xbb\xbf" + water_text(2).encode())
    assert len(read_frames(path)) == 2


def test_a_plain_xyz_with_free_text_is_read(tmp_path: Path) -> None:
    text = "2\nit's a \"dimer {of hydrogen without PBC or lattice\nH 0 0 0\n1 0 0 0.74\n"
    (frame,) = read_frames(write(tmp_path / "plain.xyz", text))
    assert frame.symbols == ["H", "H"]
    assert not frame.pbc.any()
    assert frame.energy is None


def test_a_lattice_without_pbc_is_periodic(tmp_path: Path) -> None:
    text = '1\nLattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3\nCu 0 0 0\n'
    (frame,) = read_frames(write(tmp_path / "box.xyz", text))
    assert frame.pbc.all()
    assert np.array_equal(frame.cell, 3 * np.eye(3))


ALPHABET = st.sampled_from(list("0123456789.-+eE =\"'{}[]\\:,TFOHRSI\n\t\x00é"))


@st.composite
def mutations(draw: st.DrawFn) -> str:
    text = list(water_text(2, extra='tag="a b" x=1.5'))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(len(text) - 1, 0)))
        kind = draw(st.sampled_from(["replace", "insert", "delete", "cut", "repeat"]))
        if kind == "replace" and text:
            text[place] = draw(ALPHABET)
        elif kind == "insert":
            text[place:place] = list(draw(st.text(ALPHABET, max_size=8)))
        elif kind == "delete":
            del text[place : place + draw(st.integers(1, 40))]
        elif kind == "cut":
            del text[place:]
        else:
            text[place:place] = text[place : place + draw(st.integers(1, 80))]
    return "".join(text)


@settings(
    max_examples=250, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=mutations())
def test_a_mutated_file_is_read_or_refused_in_one_way(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mutated.xyz"
    path.write_bytes(text.encode())
    message = refusal(path)
    assert message is None or "mutated.xyz" in message


@settings(max_examples=100, deadline=2000, suppress_health_check=list(HealthCheck))
@given(payload=st.binary(max_size=300), suffix=st.sampled_from(["", ".xz", ".gz", ".bz2"]))
def test_random_bytes_are_refused(tmp_path: Path, payload: bytes, suffix: str) -> None:
    path = tmp_path / f"noise.xyz{suffix}"
    path.write_bytes(payload)
    with pytest.raises(DataError, match=r"noise\.xyz"):
        list(iter_extxyz(path))
