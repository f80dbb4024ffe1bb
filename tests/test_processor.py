"""The processor is named wherever results are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from clebsch.processor import processor_name


def test_a_processor_that_linux_does_not_name_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "processor\t: 0\nBogoMIPS\t: 50\n")
    assert processor_name()
