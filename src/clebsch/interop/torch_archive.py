"""Files of ``torch.save`` read without unpickling: a zip archive of a pickle and raw storages.

Nothing of such a file can be trusted. The pickle goes through ``PickleReader``, which runs no code;
archives are read record by record and never unpacked to disk; sizes are held against what the
file really contains before memory is taken for them.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clebsch.errors import ModelFileError
from clebsch.interop.inert import Global
from clebsch.interop.pickle_reader import Builder, PickleReader

#: Bytes of the pickle, the description of all objects without their numbers.
MAX_PICKLE = 64 * 2**20
#: Records of an archive: one for each storage, and a few more.
MAX_RECORDS = 100_000
MAX_DIMENSIONS = 16

_ZIP = b"PK\x03\x04"
#: How pickles of protocols 2 to 5 begin: files of torch before 1.6 are several of them.
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_STORAGES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_RESAVE = "torch.save(torch.load('OLD', map_location='cpu', weights_only=False), 'NEW')"


def is_torch_file(path: Path | str) -> bool:
    """Whether a file begins as those of ``torch.save`` do, of the present form or an older one."""
    with open(path, "rb") as file:
        start = file.read(9)
    # A file of safetensors begins with the length of its header, which opens with a brace.
    if start[8:9] == b"{":
        return False
    return start.startswith((_ZIP, *_PICKLES))


def read_torch_file(path: Path | str) -> Any:
    """The object in a file of ``torch.save``: containers, numbers, CPU tensors and stubs.

    Raises:
        ModelFileError: the file is damaged, of a form that is not read, names what no model is
            made of, or claims sizes that it does not have.
        OSError: it cannot be opened.
    """
    path = Path(path)
    with open(path, "rb") as file:
        start = file.read(4)
    if start != _ZIP:
        raise ModelFileError(
            f"{path}: written by a torch older than 1.6, or no file of torch at all; where "
            f"mace-torch is installed, write it anew with {_RESAVE}"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return _Archive(path, archive).read()
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        NotImplementedError,
        RuntimeError,
        ValueError,
        EOFError,
        OverflowError,
    ) as error:
        raise ModelFileError(f"{path}: the archive is damaged ({error})") from None


class _Archive:
    """An archive's records, checked."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self.archive = archive
        self.storages: dict[str, Tensor] = {}
        self.records = self._records()

    def _error(self, reason: str) -> ModelFileError:
        return ModelFileError(f"{self.path}: refused: {reason}")

    def _records(self) -> dict[str, zipfile.ZipInfo]:
        """Records by their names below the archive's one folder."""
        listed = self.archive.infolist()
        if len(listed) > MAX_RECORDS:
            raise self._error(f"the archive has {len(listed)} records")
        # Before sizes are judged: TorchScript compresses its code.
        inner = {info.filename.partition("/")[2] for info in listed}
        if any(name.startswith("code/") or name == "constants.pkl" for name in inner):
            raise ModelFileError(
                f"{self.path}: a TorchScript archive (such as *_compiled.model or a model for "
                "LAMMPS), whose architecture is compiled code; use the .model file that was "
                "written beside it, or that it was made from"
            )
        # torch.save never compresses; so no record can be larger than the file, nor all together.
        if sum(info.file_size for info in listed) > self.path.stat().st_size:
            raise self._error("the archive's records claim more bytes than the file has")
        records: dict[str, zipfile.ZipInfo] = {}
        roots = set()
        for info in listed:
            root, _, name = info.filename.partition("/")
            roots.add(root)
            unsafe = (
                "\\" in info.filename or ".." in info.filename.split("/") or not (root and name)
            )
            if unsafe or len(roots) > 1 or name in records:
                raise self._error(f"a record named {info.filename!r}, which torch does not write")
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise self._error(f"record {info.filename!r} is compressed or encrypted")
            records[name] = info
        return records

    def read(self) -> Any:
        """The pickled object."""
        if "data.pkl" not in self.records:
            raise ModelFileError(f"{self.path}: a zip archive, but none that torch.save wrote")
        if "byteorder" in self.records and self._record("byteorder", 16).strip() != b"little":
            raise self._error("its numbers are big-endian")
        builders: dict[str, Builder] = {
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": self._parameter,
            "torch._utils._rebuild_parameter_with_state": self._parameter,
        }
        reader = PickleReader(builders, self._storage, str(self.path))
        return reader.read(self._record("data.pkl", MAX_PICKLE))

    def _record(self, name: str, most: int) -> bytes:
        info = self.records[name]
        if info.file_size > most:
            raise self._error(f"record {name} has {info.file_size} bytes, more than {most}")
        return self.archive.read(info)

    def _storage(self, persistent_id: Any) -> Tensor:
        """[numel], a storage of the archive. Where it lay (CPU, GPU) does not matter."""
        if not (isinstance(persistent_id, tuple) and len(persistent_id) == 5):
            raise self._error("a persistent id that names no storage")
        tag, kind, key, _, numel = persistent_id
        dtype = _STORAGES.get(kind.name) if isinstance(kind, Global) else None
        if tag != "storage" or dtype is None or not isinstance(key, str) or type(numel) is not int:
            raise self._error(f"a storage of kind {kind}")
        name = f"data/{key}"
        if name not in self.records:
            raise self._error(f"storage {key!r} is missing")
        if self.records[name].file_size != numel * dtype.itemsize:
            raise self._error(
                f"storage {key!r} claims {numel} numbers of {dtype.itemsize} bytes and has "
                f"{self.records[name].file_size} bytes"
            )
        if key not in self.storages:
            raw = bytearray(self._record(name, self.records[name].file_size))
            empty = torch.empty(0, dtype=dtype)
            self.storages[key] = torch.frombuffer(raw, dtype=dtype) if raw else empty
        if self.storages[key].dtype != dtype:
            raise self._error(f"storage {key!r} is said to be of two kinds")
        return self.storages[key]

    def _tensor(self, args: tuple[Any, ...]) -> Tensor:
        storage, offset, size, stride = args[:4]
        numbers = (offset, *size, *stride)
        if not isinstance(storage, Tensor) or any(type(n) is not int for n in numbers):
            raise self._error("a tensor of no storage")
        if min(numbers) < 0 or len(size) != len(stride) or len(size) > MAX_DIMENSIONS:
            raise self._error(f"a tensor of size {tuple(size)} and stride {tuple(stride)}")
        reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        numel = math.prod(size)
        if numel and (reach >= len(storage) or numel > len(storage)):
            raise self._error(f"a tensor of size {tuple(size)} in {len(storage)} numbers")
        if not numel:
            return torch.empty([min(n, 1) for n in size], dtype=storage.dtype)
        return storage.as_strided(size, stride, offset)

    def _parameter(self, args: tuple[Any, ...]) -> Tensor:
        if not args or not isinstance(args[0], Tensor):
            raise self._error("a parameter that is no tensor")
        return args[0]
