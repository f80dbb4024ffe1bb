"""How the GPU backend chooses what kernels are launched with, by a clock that says what we like."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", minversion="3.5", reason="the GPU backend needs Triton 3.5")

from clebsch.algebra import spherical_irreps
from clebsch.kernels.gpu import convolution, convolution_code, machine, tuning
from clebsch.kernels.gpu.convolution_walk import Radial
from clebsch.kernels.gpu.tuning import Setting
from clebsch.kernels.plan import convolution_plan

SETTINGS = (Setting(1), Setting(2), Setting(4))
LARGE = (5000, 2)
SMALL = convolution_plan(spherical_irreps(1), spherical_irreps(1), spherical_irreps(1))


class Clock:
    """In the place of timing: launches once, and says how long a setting is to have taken."""

    def __init__(self, **times: float) -> None:
        self.times = {Setting(int(name[1:])): time for name, time in times.items()}
        self.timed: list[Setting] = []

    def __call__(self, function: Callable[[], object]) -> float:
        assert isinstance(function, partial)
        function()
        (setting,) = function.args
        self.timed.append(setting)
        return self.times[setting]


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A machine with a GPU and an empty cache folder, on which nothing is being captured."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(tuning, "_chosen", {})
    monkeypatch.setenv("CLEBSCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CLEBSCH_TUNE", raising=False)
    return monkeypatch


def choose(
    clock: Clock,
    gpu: pytest.MonkeyPatch,
    grid: tuple[int, ...] = LARGE,
    settings: tuple[Setting, ...] = SETTINGS,
    run: Callable[[Setting], object] = lambda setting: None,
    dtype: torch.dtype = torch.float32,
) -> Setting:
    gpu.setattr(tuning, "milliseconds", clock)
    arguments = (torch.ones(1, dtype=dtype), 3)
    kernel = SimpleNamespace(module="clebsch_convolve_0123")
    return tuning.choose(kernel, grid, arguments, {"BLOCK": 128}, settings, run)


def forget() -> None:
    """Be another process."""
    tuning._chosen.clear()


def test_the_fastest_is_timed_once_and_kept_for_other_processes(
    gpu: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = Clock(w1=3.0, w2=1.0, w4=2.0)
    assert choose(clock, gpu) == choose(clock, gpu) == Setting(2)
    assert clock.timed == list(SETTINGS)
    (file,) = (tmp_path / "cache").iterdir()
    content = json.loads(file.read_text())
    assert (content["gpu"], content["kernel"]) == ("Some GPU", "clebsch_convolve_0123")
    assert content["setting"] == {"n_warps": 2, "n_stages": 3}
    forget()
    assert choose(Clock(), gpu) == Setting(2)


@pytest.mark.parametrize("other", ["gpu", "triton", "dtype", "size", "settings"])
def test_another_gpu_triton_type_size_or_choice_is_timed_anew(
    other: str, gpu: pytest.MonkeyPatch
) -> None:
    choose(Clock(w1=3.0, w2=1.0, w4=2.0), gpu)
    forget()
    clock, changed = Clock(w1=1.0, w2=2.0, w4=3.0), {}
    if other == "gpu":
        gpu.setattr(torch.cuda, "get_device_name", lambda device: "Other GPU")
    elif other == "triton":
        gpu.setattr(tuning.triton, "__version__", "9.9")
    else:
        values: dict[str, Any] = {"dtype": torch.float64, "settings": SETTINGS[:2]}
        name = "grid" if other == "size" else other
        changed[name] = values.get(other, (80_000, 2))
    assert choose(clock, gpu, **changed) == Setting(1)
    assert clock.timed


@pytest.mark.parametrize("content", [b"\xff", b"{}", b"[]", b'{"setting": {"n_warps": 64}}'])
def test_a_damaged_file_costs_the_timing_and_is_written_again(
    content: bytes, gpu: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    choose(Clock(w1=3.0, w2=1.0, w4=2.0), gpu)
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    file.write_bytes(content)
    forget()
    assert choose(Clock(w1=3.0, w2=1.0, w4=2.0), gpu) == Setting(2)
    assert file.read_bytes() == whole


def test_a_folder_that_cannot_be_written_costs_the_timing(
    gpu: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    gpu.setenv("CLEBSCH_CACHE", str(tmp_path / "file" / "below"))
    assert choose(Clock(w1=3.0, w2=1.0, w4=2.0), gpu) == Setting(2)


def test_nothing_is_timed_where_it_is_off_or_small_or_captured_or_without_a_choice(
    gpu: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    assert choose(clock, gpu, grid=(10, 2)) == Setting(1)
    assert choose(clock, gpu, settings=(Setting(8),)) == Setting(8)
    with gpu.context() as off:
        off.setenv("CLEBSCH_TUNE", "0")
        assert choose(clock, gpu) == Setting(1)
    with gpu.context() as capturing:
        capturing.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert choose(clock, gpu) == Setting(1)
    assert not clock.timed
    assert choose(Clock(w1=3.0, w2=1.0, w4=2.0), gpu) == Setting(2)  # none of it is remembered
    gpu.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose(clock, gpu) == Setting(2)


def test_a_setting_that_fails_is_passed_over_but_for_the_default(gpu: pytest.MonkeyPatch) -> None:
    def run(setting: Setting) -> None:
        if setting == failing:
            raise RuntimeError("out of resource")

    failing, clock = Setting(4), Clock(w1=3.0, w2=2.0, w4=1.0)
    assert choose(clock, gpu, run=run) == Setting(2)
    forget()
    failing = Setting(1)
    with pytest.raises(RuntimeError, match="out of resource"):
        choose(clock, gpu, run=run, dtype=torch.float64)


WANTED = convolution_code.Wanted(radial=True, harmonics=True)


@pytest.mark.parametrize("source", ["given", "table", "layer"])
def test_kernels_with_a_choice_do_not_read_what_they_write_nor_sum_over_channels_if_of_warps(
    source: Radial,
) -> None:
    written = {
        "convolve": convolution_code.write_forward(SMALL, source),
        "convolve_node_gradient": convolution_code.write_node_gradient(SMALL, source),
        "convolve_second_node": convolution_code.write_second_node(SMALL),
    }
    assert set(written) == set(convolution.FREE)
    if source == "layer":
        written["convolve_gradients"] = convolution_code.write_gradients(SMALL, WANTED, source)
    for text in written.values():
        rows = dict(re.findall(r"(\w+) = (\w+) \+", text))
        stored = {rows.get(row, row) for row in re.findall(r"tl\.store\((\w+)", text)}
        loaded = {rows.get(row, row) for row in re.findall(r"tl\.load\((\w+)", text)}
        assert stored
        assert not stored & loaded
        if source != "layer":
            assert not re.search(r"tl\.(sum|dot|reduce|cumsum|atomic|trans)", text)


@pytest.mark.parametrize(
    ("name", "channels", "warps"),
    [
        ("convolve", 128, [1, 2, 4]),
        ("convolve", 20, [1]),
        ("convolve_node_gradient", 128, [1, 2]),
        ("convolve_gradients", 128, [1]),
        ("convolve_second", 128, [1]),
    ],
)
def test_a_warp_has_32_channels_at_least_and_kernels_that_sum_over_channels_have_no_choice(
    name: str, channels: int, warps: list[int]
) -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    call = convolution.Call(SMALL.key, torch.ones(1, 4, channels), [nothing] * 5)
    assert [setting.n_warps for setting in call.settings(name)] == warps


def test_kernels_that_make_path_weights_have_a_choice_of_stages_alone() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    call = convolution.Call(SMALL.key, torch.ones(1, 4, 128), [nothing] * 5, width=64)
    settings = call.settings("convolve")
    assert len(settings) > 1
    assert {setting.n_warps for setting in settings} == {convolution.WARPS}


def test_a_launch_passes_the_choice_on_and_times_nothing_under_the_interpreter(
    gpu: pytest.MonkeyPatch,
) -> None:
    launched: list[dict[str, int]] = []

    class Kernel:
        module = "clebsch_convolve_0123"

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *arguments, **options: launched.append(options)

    def launch(arguments: tuple[Any, ...]) -> list[dict[str, int]]:
        launched.clear()
        machine.launch(Kernel(), LARGE, arguments, SETTINGS, BLOCK=128)
        return launched

    gpu.setattr(tuning, "milliseconds", Clock(w1=3.0, w2=1.0, w4=2.0))
    gpu.setattr(machine, "is_interpreted", lambda: True)
    assert launch((torch.ones(1),)) == [{"BLOCK": 128}]

    class OnGpu(torch.Tensor):
        is_cuda = True  # type: ignore[assignment]

    gpu.setattr(machine, "is_interpreted", lambda: False)
    gpu.setattr(torch.cuda, "device", lambda device: gpu.context())
    warps = [options["num_warps"] for options in launch((torch.ones(1).as_subclass(OnGpu),))]
    assert warps == [1, 2, 4, 2]
