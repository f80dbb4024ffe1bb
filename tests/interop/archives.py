"""Archives as ``torch.save`` writes them, and such as nobody but an attacker would."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

DATA = Path(__file__).parents[1] / "data_files"
#: A tiny ScaleShiftMACE of two heads, with ZBL and the Agnesi transform, in float64.
MODEL = DATA / "mace_torch.model"
#: Structures, and what mace-torch 0.3.16 said of them for each head.
ANSWERS = DATA / "mace_torch.json"


def archive(
    path: Path,
    pickle: bytes = b"\x80\x02N.",
    storages: dict[str, bytes] | None = None,
    extra: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """A file of one pickle and storages."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", pickle)
        for key, raw in (storages or {}).items():
            file.writestr(f"archive/data/{key}", raw)
        for name, raw in (extra or {}).items():
            file.writestr(name, raw)
    return path


def torchscript(path: Path) -> Path:
    """As ``torch.jit.save`` writes: the code deflated, all else stored."""
    archive(path, extra={"archive/constants.pkl": b"\x80\x02N."})
    with zipfile.ZipFile(path, "a") as file:
        code = b"class MACE(Module):\n" * 1000
        file.writestr("archive/code/__torch__.py", code, zipfile.ZIP_DEFLATED)
    return path


def named(module: str, name: str) -> bytes:
    """The instruction that looks up a name."""
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    """The instruction that pushes a text."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def whole(value: int) -> bytes:
    """The instruction that pushes an integer of any size."""
    raw = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def call(module: str, name: str, *arguments: bytes) -> bytes:
    """Instructions that call a name."""
    return named(module, name) + b"(" + b"".join(arguments) + b"tR"


def program(body: bytes, protocol: int = 2) -> bytes:
    """A whole pickle."""
    return b"\x80" + bytes([protocol]) + body + b"."


def storage(numel: int, key: str = "0", kind: str = "FloatStorage", place: str = "cpu") -> bytes:
    """Instructions that push a storage."""
    parts = text("storage") + named("torch", kind) + text(key) + text(place) + whole(numel)
    return b"(" + parts + b"tQ"


def numbers(*values: int) -> bytes:
    """Instructions that push a tuple of integers."""
    return b"(" + b"".join(whole(value) for value in values) + b"t"


def tensor(
    size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, numel: int = 4
) -> bytes:
    """Instructions that rebuild a tensor."""
    parts = storage(numel), whole(offset), numbers(*size), numbers(*stride), b"\x89", b"}"
    return call("torch._utils", "_rebuild_tensor_v2", *parts)
