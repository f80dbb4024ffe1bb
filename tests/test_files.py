"""A file that cannot be written is refused before the work, and named when it fails after all."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from clebsch.errors import ClebschError
from clebsch.files import atomic_write, check_output, check_outputs


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file can be made anywhere, as in a folder without permission (which root always has)."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "of-a-temporary-name")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(tempfile, "mkstemp", refuse)


@pytest.mark.usefixtures("read_only")
def test_a_folder_without_permission_is_found_out_before_the_work(tmp_path: Path) -> None:
    path = tmp_path / "relaxed.extxyz"
    with pytest.raises(ClebschError, match=r"relaxed\.extxyz: cannot be written: Permission"):
        check_output(path)
    with pytest.raises(PermissionError) as error:
        atomic_write(path, "structure")
    assert error.value.filename == str(path), "not the temporary name"


def test_a_file_that_can_be_written_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "relaxed.extxyz"
    assert check_output(str(path)) == path
    path.write_text("old")
    with pytest.raises(ClebschError, match="--overwrite"):
        check_output(path)
    assert check_output(path, overwrite=True) == path
    with pytest.raises(ClebschError, match="is read by this command"):
        check_output(path, overwrite=True, inputs=[path])
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "old"


def test_no_two_results_are_written_to_one_file(tmp_path: Path) -> None:
    path, link = tmp_path / "steps.traj", tmp_path / "link.traj"
    link.symlink_to(path)
    check_outputs([path, None, tmp_path / "relaxed.extxyz", None])
    for other in (path, link, tmp_path / ".." / tmp_path.name / path.name):
        with pytest.raises(ClebschError, match=f"{other}: is to hold two results"):
            check_outputs([path, other])
    with pytest.raises(ClebschError, match="is read by this command"):
        check_outputs([tmp_path / "a.traj", path], inputs=(each for each in [path]))
