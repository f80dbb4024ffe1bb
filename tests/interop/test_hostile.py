"""Files made to harm: every one is refused, nothing of it runs, and it costs little to see that."""

from __future__ import annotations

import pickle
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clebsch
from clebsch.errors import ModelFileError
from clebsch.interop import pickle_reader
from clebsch.interop.inert import Stub
from clebsch.interop.torch_archive import is_torch_file, read_torch_file

from .archives import (
    MODEL,
    archive,
    call,
    named,
    program,
    storage,
    tensor,
    text,
    torchscript,
    whole,
)

FOUR = {"0": np.arange(4, dtype=np.float32).tobytes()}

#: What a pickle does, and what the error names.
PICKLES: dict[str, tuple[bytes, str]] = {
    "calls os.system": (call("os", "system", text("touch RAN")), "os.system"),
    "calls posix.system": (call("posix", "system", text("touch RAN")), "posix.system"),
    "evaluates": (call("builtins", "eval", text("open('RAN', 'w')")), "builtins.eval"),
    "evaluates under the old name": (
        call("__builtin__", "exec", text("open('RAN', 'w')")),
        "builtins.exec",
    ),
    "starts a process": (call("subprocess", "Popen", text("touch RAN")), "subprocess.Popen"),
    "looks a name up": (
        call("builtins", "getattr", named("torch", "float32"), text("x")),
        "builtins.getattr",
    ),
    "imports": (call("builtins", "__import__", text("os")), "builtins.__import__"),
    "loads another file": (call("torch", "load", text("RAN")), "torch.load"),
    "loads from the net": (call("torch.hub", "load", text("RAN")), "torch.hub.load"),
    "unpickles again": (call("pickle", "loads", text("RAN")), "pickle.loads"),
    "runs a module": (call("runpy", "run_path", text("RAN")), "runpy.run_path"),
    "names a package like ours": (named("macerator", "system"), "macerator.system"),
    "names by the stack": (text("os") + text("system") + b"\x93", "os.system"),
    "names what is no text": (b"K\x01K\x02\x93", "no text"),
    "calls a dictionary": (b"})R", "call of what is no name"),
    "calls with what is no tuple": (named("torch.nn", "Linear") + b"]R", "no name"),
    "sets attributes of a tensor": (tensor((2, 2), (2, 1)) + b"}b", "attributes"),
    "sets attributes of a name": (named("torch.nn", "Linear") + b"}b", "attributes"),
    "sets attributes twice": (
        call("torch.nn", "Linear") + b"}" + text("a") + b"K\x01sb}" + text("b") + b"K\x02sb",
        "attributes",
    ),
    "uses an extension code": (b"\x82\x01", "EXT1"),
    "uses a longer extension code": (b"\x83\x01\x02", "EXT2"),
    "uses the longest extension code": (b"\x84\x01\x02\x03\x04", "EXT4"),
    "makes an instance": (b"(ios\nsystem\n", "INST"),
    "makes an object": (b"(" + named("torch.nn", "Linear") + b"o", "OBJ"),
    "makes an object with keywords": (named("torch.nn", "Linear") + b")}\x92", "NEWOBJ_EX"),
    "has a persistent id as text": (b"Pstorage\n", "PERSID"),
    "has a persistent id of its own": (text("x") + b"Q", "no storage"),
    "has a buffer from elsewhere": (b"\x97", "NEXT_BUFFER"),
    "writes numbers as text": (b"I" + b"9" * 100_000 + b"\n", "damaged|INT"),
    "has an unknown instruction": (b"\xff", "damaged"),
    "claims a text of exabytes": (b"\x8d" + struct.pack("<Q", 2**62), "damaged"),
    "claims bytes of exabytes": (b"\x8e" + struct.pack("<Q", 2**63 - 1), "damaged"),
    "claims an integer of gigabytes": (b"\x8b" + struct.pack("<i", 2**31 - 1), "damaged"),
    "claims an integer of negative size": (b"\x8b" + struct.pack("<i", -1), "damaged"),
    "takes from an empty stack": (b"0", "POP"),
    "takes what is not there": (b"R", "damaged"),
    "recalls what was never kept": (b"h\x05", "damaged"),
    "forgets its mark": (b"K\x01t", "damaged"),
    "ends with a mark": (b"(", "middle"),
    "appends to a number": (b"K\x01K\x02a", "no list"),
    "puts items into a list": (b"]K\x01K\x02s", "no dictionary"),
    "has half an item": (b"}(K\x01u", "no dictionary"),
    "has a key that collides": (b"}" + whole(2**61 - 1) + b"K\x01s", "a key of type int"),
    "has a tuple for a key": (b"})K\x01s", "a key of type tuple"),
    "has a list for a key": (b"}]K\x01s", "a key of type list"),
    "encodes by a codec": (call("_codecs", "encode", text("a"), text("zip")), "encoding 'zip'"),
    "fills a dictionary by a call": (call("collections", "OrderedDict", b"]"), "OrderedDict"),
    "has a storage of its own kind": (storage(4, kind="QInt8Storage"), "QInt8Storage"),
    "has a storage that is not there": (storage(4, key="7"), "storage '7' is missing"),
    "has a storage outside": (storage(4, key="../data.pkl"), "missing"),
    "claims a larger storage": (storage(5), "claims 5 numbers"),
    "claims a storage of exabytes": (storage(2**60), "claims"),
    "reads a storage as two kinds": (
        b"(" + storage(4) + storage(4, kind="IntStorage") + b"t",
        "two kinds",
    ),
    "has a tensor beyond its storage": (tensor((2, 3), (2, 1)), "tensor of size"),
    "has a tensor that starts outside": (tensor((2,), (1,), offset=3), "tensor of size"),
    "has a tensor that starts before": (tensor((2,), (1,), offset=-1), "tensor of size"),
    "has a tensor of negative stride": (tensor((2,), (-1,), offset=3), "tensor of size"),
    "has a tensor of exabytes": (tensor((2**40, 2**40), (1, 1)), "tensor of size"),
    "has a view that repeats itself": (tensor((2**20,), (0,)), "tensor of size"),
    "has a tensor of many dimensions": (tensor((1,) * 99, (1,) * 99), "tensor of size"),
    "has sizes that are no integers": (
        call(
            "torch._utils",
            "_rebuild_tensor_v2",
            storage(4),
            b"K\x00",
            *[b"(" + text("a") + b"t"] * 2,
        ),
        "tensor of no storage",
    ),
    "has a parameter of a number": (
        call("torch._utils", "_rebuild_parameter", b"K\x01"),
        "parameter that is no tensor",
    ),
    "is nested deeply": (b")" + b"\x85" * 400_000, "holds no model"),
    "is a list in a list, deeply": (b"]" * 200_000 + b"a" * 199_999, "holds no model"),
    "goes on and on": (b"(" + b"N" * pickle_reader.MAX_INSTRUCTIONS + b"t", "instructions"),
    "hides in the name of a package": (
        call("mace.os", "system", text("touch RAN")),
        "class system",
    ),
    "is a model of nothing": (call("mace.modules.models", "MACE"), "has no tensor"),
    "is another kind of model": (
        call("mace.modules.models", "AtomicDipolesMACE"),
        "class AtomicDipolesMACE.*dipoles and polarisabilities are not read",
    ),
    "was converted for cuequivariance": (
        named("cuequivariance_torch.operations.linear", "Linear"),
        "mace_cueq_to_e3nn",
    ),
    "was converted for openequivariance": (named("openequivariance", "X"), "mace_oeq_to_e3nn"),
    "was exported for LAMMPS": (
        named("mace.calculators.lammps_mace", "LAMMPS_MACE"),
        "export for LAMMPS.*use the .model file",
    ),
    "has weights of LoRA beside its own": (
        named("mace.modules.lora", "LoRAO3Linear"),
        "LoRA.*merge_lora_weights",
    ),
    "was compiled": (
        named("torch._dynamo.eval_frame", "OptimizedModule"),
        "save model._orig_mod",
    ),
    "averages a model": (named("torch.optim.swa_utils", "AveragedModel"), "save model.module"),
    "spreads a model over GPUs": (
        named("torch.nn.parallel.data_parallel", "DataParallel"),
        "save model.module",
    ),
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_hostile_pickle_is_refused_and_nothing_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    body, message = PICKLES[name]
    path = archive(tmp_path / "hostile.model", program(body, protocol=4), FOUR)
    tracemalloc.start()
    started = time.monotonic()
    try:
        with pytest.raises(ModelFileError, match=message) as refused:
            clebsch.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "hostile.model" in str(refused.value)
    assert len(str(refused.value)) < 2000
    assert list(tmp_path.iterdir()) == [path]
    assert time.monotonic() - started < 60  # seconds even where the machine is busy
    assert peak < 300e6


def test_python_would_have_run_the_first_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The corpus is dangerous indeed."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(program(PICKLES["calls os.system"][0]))
    assert (tmp_path / "RAN").exists()


def test_a_real_pickle_of_a_stub_class_runs_nothing(tmp_path: Path):
    state = {"_modules": {}, "x": 1}
    body = named("mace.modules.models", "MACE") + b")\x81}" + text("x") + b"K\x01sb"
    found = read_torch_file(archive(tmp_path / "m.model", program(body)))
    assert isinstance(found, Stub)
    assert str(found.kind) == "mace.modules.models.MACE"
    assert found.state["x"] == state["x"]


def zip_bomb(path: Path) -> Path:
    return archive(path, program(b"N" + b" " * 10**7), compression=zipfile.ZIP_DEFLATED)


def overlapping(path: Path) -> Path:
    """Records that all claim the same bytes."""
    archive(path, storages={str(i): b"\0" * 10_000 for i in range(3)})
    raw = path.read_bytes()
    directory = raw.index(b"PK\x01\x02")
    entries = raw[directory : raw.index(b"PK\x05\x06")]
    first = entries[: entries.index(b"PK\x01\x02", 4)]
    biggest = entries[entries.index(b"PK\x01\x02", 4) :]
    biggest = biggest[: biggest.index(b"PK\x01\x02", 4)]
    many = first + b"".join(
        biggest.replace(b"data/0", f"data/{chr(65 + i)}".encode()) for i in range(26)
    )
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 27, 27, len(many), directory, 0)
    path.write_bytes(raw[:directory] + many + end)
    return path


def claiming(path: Path) -> Path:
    """A record that claims four gigabytes less one."""
    archive(path)
    raw = bytearray(path.read_bytes())
    place = raw.index(b"PK\x01\x02")
    raw[place + 20 : place + 28] = struct.pack("<LL", 2**32 - 2, 2**32 - 2)
    path.write_bytes(raw)
    return path


def encrypted(path: Path) -> Path:
    archive(path)
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    return path


def duplicated(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"a")
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("archive/data.pkl", b"b")
    return path


def plain_pickle(path: Path) -> Path:
    path.write_bytes(program(call("os", "system", text("touch RAN")), protocol=2))
    return path


def legacy(path: Path) -> Path:
    torch.save({"model": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    return path


def large_pickle(path: Path) -> Path:
    return archive(path, b"\x80\x02" + b"N0" * (33 * 2**20) + b"N.")


FILES: dict[str, tuple[Any, str]] = {
    "a zip bomb": (zip_bomb, "claim more bytes|compressed"),
    "records that overlap": (overlapping, "claim more bytes"),
    "a record that claims gigabytes": (claiming, "claim more bytes"),
    "an encrypted record": (encrypted, "encrypted"),
    "a record twice": (duplicated, "does not write"),
    "a pickle that is too large": (large_pickle, "more than"),
    "a path out of the archive": (
        lambda p: archive(p, extra={"archive/../../x": b""}),
        "does not write",
    ),
    "an absolute path": (lambda p: archive(p, extra={"/etc/x": b""}), "does not write"),
    "a path of Windows": (lambda p: archive(p, extra={"archive/..\\x": b""}), "does not write"),
    "two folders": (lambda p: archive(p, extra={"other/data.pkl": b""}), "does not write"),
    "big-endian numbers": (lambda p: archive(p, extra={"archive/byteorder": b"big"}), "big-endian"),
    "TorchScript": (torchscript, "TorchScript.*use the .model file"),
    "another zip archive": (
        lambda p: (zipfile.ZipFile(p, "w").writestr("a/b.txt", "x"), p)[1],
        "none that torch.save wrote",
    ),
    "a plain pickle": (plain_pickle, "older than 1.6"),
    "the form of torch before 1.6": (legacy, "older than 1.6.*torch.save"),
    "an archive that is cut off": (
        lambda p: (p.write_bytes(MODEL.read_bytes()[:150_000]), p)[1],
        "archive is damaged",
    ),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("name", FILES)
def test_a_hostile_archive_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    make, message = FILES[name]
    path = make(tmp_path / "hostile.model")
    assert is_torch_file(path)
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError, match=message):
            clebsch.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert list(tmp_path.iterdir()) == [path]
    assert peak < 100e6


@pytest.mark.parametrize("raw", [b"", b"x", b"PK", b"#!/bin/sh\ntouch RAN\n", b"\x80"])
def test_what_is_no_file_of_torch_is_told_apart(raw: bytes, tmp_path: Path):
    path = tmp_path / "x.model"
    path.write_bytes(raw)
    assert not is_torch_file(path)
    with pytest.raises(ModelFileError, match="not a readable safetensors file"):
        clebsch.load(path)


def test_weights_without_an_architecture_are_refused(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"model": {"r_max": torch.ones(())}, "optimizer": {}}, path)
    with pytest.raises(ModelFileError, match=r"without the architecture.*\.model file"):
        clebsch.load(path)
    torch.save({"epoch": 3, "lr": 0.1}, path)
    with pytest.raises(ModelFileError, match="holds no model of mace-torch"):
        clebsch.load(path)


def test_a_damaged_pickle_gives_an_error_of_ours_or_is_harmless(tmp_path: Path):
    """Bytes of the real pickle changed at random, behind a correct checksum."""
    with zipfile.ZipFile(MODEL) as file:
        records = {info.filename.split("/", 1)[1]: file.read(info) for info in file.infolist()}
    original = records.pop("data.pkl")
    extra = {f"archive/{name}": raw for name, raw in records.items()}
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(40):
        damaged = bytearray(original)
        for place in rng.integers(0, len(damaged), size=1 + trial % 4):
            damaged[place] = rng.integers(256)
        path = archive(tmp_path / "damaged.model", bytes(damaged), extra=extra)
        try:
            clebsch.load(path, head="first")
        except clebsch.ClebschError:
            refused += 1
    assert refused > 0


def test_a_flipped_bit_in_the_weights_is_noticed(tmp_path: Path):
    raw = bytearray(MODEL.read_bytes())
    raw[raw.index(b"/data/17") + 200] ^= 1  # torch aligns storages to 64 bytes
    path = tmp_path / "flipped.model"
    path.write_bytes(raw)
    with pytest.raises(ModelFileError, match="damaged"):
        clebsch.load(path, head="first")


def test_modules_that_contain_each_other_are_not_followed(tmp_path: Path):
    """Every module holds the one before twice: 2^60 paths for whoever would walk them all."""
    level = named("mace.modules.models", "MACE") + b")\x81q\x00"
    for number in range(60):
        put, get = b"q" + bytes([number + 1]), b"h" + bytes([number])
        inner = b"}(" + text("a") + get + text("b") + get + b"u"
        state = b"}" + text("_modules") + inner + b"s"
        level += b"0" + named("mace.modules.models", "MACE") + b")\x81" + state + b"b" + put
    path = archive(tmp_path / "m.model", program(level))
    with pytest.raises(ModelFileError):
        clebsch.load(path)


def test_numbers_are_read_as_torch_wrote_them(tmp_path: Path):
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64)
    kinds = (*kinds, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    written = {str(kind): torch.arange(6).view(2, 3).to(kind).T for kind in kinds}
    written |= {"empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5)}
    written["part"] = torch.arange(10.0)[3:7]
    torch.save(written, tmp_path / "numbers.pt")
    found = read_torch_file(tmp_path / "numbers.pt")
    assert found.keys() == written.keys()
    for name, tensor_ in written.items():
        assert found[name].dtype == tensor_.dtype
        assert torch.equal(found[name].flatten(), tensor_.flatten())


def test_storages_of_a_gpu_are_read_to_the_cpu(tmp_path: Path):
    parts = storage(4, place="cuda:3"), whole(1), b"K\x03\x85", b"K\x01\x85", b"\x89", b"}"
    body = call("torch._utils", "_rebuild_tensor_v2", *parts)
    found = read_torch_file(archive(tmp_path / "gpu.pt", program(body), FOUR))
    assert found.device.type == "cpu"
    assert found.tolist() == [1.0, 2.0, 3.0]
