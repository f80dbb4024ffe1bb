"""A first look at a GPU: is it right, where does time go, which settings of kernels are fastest.

    python scripts/gpu_look.py times 0=forces,tabulated,tf32 1=step,forces 2=forces,fused
    python scripts/gpu_look.py variants 2 3
    PEERS=folder python scripts/gpu_look.py peers 0 1

Numbers are those of the models of ``clebsch bench --suite gpu``. ``times``: errors against float64,
milliseconds and memory by modules and as CUDA graphs, and the kernels that take longest.
``stored``, ``blocks`` and ``fused`` evaluate with all path weights in memory, 256 MiB of them at a
time, or none.
``variants``: the second layer's convolution and the first one's product with other numbers of
channels to a thread, of warps, and of rows or terms to a part. ``peers``: one quick job of each,
whose environments are in that folder. Nothing here has run on a GPU yet.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import clebsch.repeats
import clebsch.replay
from clebsch.benchmarks.compare import gpu_cases
from clebsch.benchmarks.jobs import MeasurementError, Mode, run_job
from clebsch.benchmarks.opponents import PEERS
from clebsch.benchmarks.speed import energy_forces, frame_of, training_step
from clebsch.benchmarks.timing import accelerator, measure
from clebsch.factory import assemble
from clebsch.kernels import cuda_timing
from clebsch.rounding import allow_tf32

BEGUN = time.monotonic()
#: A structure of no more atoms is held against the reference in float64.
MOST_COMPARED = 500
#: A structure of no more edges is captured, to see up to where that is faster.
MOST_EDGES = 2**20
NEVER = 10**9


def main() -> None:
    """Command line; a case that fails does not keep the others from their turn."""
    what, *cases = sys.argv[1:]
    clebsch.replay.CAPTURE_AT, clebsch.replay.MOST_EDGES = 1, MOST_EDGES
    while cases:
        number, _, modes = cases.pop(0).partition("=")
        with going_on():
            if what == "times":
                look(int(number), modes.split(","))
            elif what == "peers":
                peers(int(number))
            else:
                variants(int(number), milliseconds)
        gc.collect()
        if not is_alive() and cases:
            os.execv(sys.executable, [sys.executable, sys.argv[0], what, *cases])


@contextmanager
def going_on() -> Iterator[None]:
    """Whatever fails in here is to be seen, and the next has its turn."""
    try:
        yield
    except Exception:
        traceback.print_exc(file=sys.stdout)


def is_alive() -> bool:
    """Whether the GPU still serves this process: after an access out of bounds it refuses."""
    try:
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def say(*words: object) -> None:
    """A line with the time."""
    print(f"[{time.monotonic() - BEGUN:5.1f} s]", *words, flush=True)


# --- times ---


def look(number: int, modes: list[str]) -> None:
    """One model on its structures."""
    from clebsch.kernels.gpu import radial

    case = gpu_cases()[number]
    job = case.job("energy_forces", "float32", 1, {})
    frames = [frame_of(structure) for structure in job["structures"]]

    def build(dtype: torch.dtype) -> Any:
        mean = job["avg_num_neighbors"]
        built = assemble(case.config, list(case.species), avg_num_neighbors=mean, dtype=dtype)
        return built.to("cuda")

    torch.manual_seed(0)
    potential = build(torch.float32).use_backend()
    graph = potential.graph(frames)
    say(f"{case.system.name}, {case.name}: {graph.n_atoms} atoms, {graph.n_edges} edges,")
    say(f"backend {potential.backend}")
    clebsch.repeats.RECORD_AFTER = NEVER
    forces = potential(graph).forces
    if graph.n_atoms <= MOST_COMPARED:
        exact = build(torch.float64)
        exact.load_state_dict(potential.state_dict())
        off = (exact.use_backend("reference")(graph).forces - forces).abs().max()
        say(f"forces up to {forces.abs().max():.3g} off by {off:.3g} from float64")
    call = energy_forces(potential, frames)
    if "forces" in modes:
        with going_on():
            both_ways("E + F", potential, call)
            same = torch.equal(potential(graph).forces, potential(graph).forces)
            off = (potential(graph).forces - forces).abs().max()
            say(f"captured off by {off:.3g} from modules; same bits again: {same}")
    ways = {"stored": (2**37, "never"), "blocks": (2**28, "never"), "fused": (0, "always")}
    for mode in [mode for mode in modes if mode in ways]:
        most, fused = ways[mode]
        stored = replaced(radial, "MOST_STORED", most)
        with going_on(), stored, replaced(radial, "FUSED", fused):
            one_way(f"E + F, {mode}", potential, call, NEVER)
    if "tf32" in modes:
        with going_on(), allow_tf32(True):
            one_way("E + F, tf32", potential, call, 0)
    if "tabulated" in modes:
        with going_on():
            tabulated = potential.tabulated()
            both_ways("E + F, tabulated", tabulated, energy_forces(tabulated, frames))
    if "step" in modes:
        with going_on():
            both_ways("step", potential, training_step(potential, frames))


def both_ways(name: str, potential: Any, call: Callable[[], object]) -> None:
    """By modules, and recorded and captured."""
    one_way(f"{name}, modules", potential, call, NEVER)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        one_way(f"{name}, captured", potential, call, 0)
    for warning in caught:
        say("WARNING", warning.message)


def one_way(name: str, potential: Any, call: Callable[[], object], record_after: int) -> None:
    """Milliseconds, memory, and kernels."""
    clebsch.repeats.RECORD_AFTER = record_after
    potential.use_backend()
    timed = measure(call, min_seconds=0.4, max_seconds=4.0, device=accelerator(torch, "cuda"))
    held = potential._repeats.captures
    median, least = statistics.median(timed["seconds"]), min(timed["seconds"])
    above = timed["device_peak_mib"] - timed["device_baseline_mib"]
    say(
        f"{name}: {1e3 * median:.3f} ms (least {1e3 * least:.3f}, n {len(timed['seconds'])}), "
        f"{above:.0f} MiB, {0 if held is None else len(held.captured)} captures"
    )
    with going_on():  # not every machine lets its GPU be profiled
        show_kernels(call)


def show_kernels(call: Callable[[], object], rows: int = 24, times: int = 3) -> None:
    """What takes longest on the device in a call."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(times):
            call()
        torch.cuda.synchronize()
    events = [e for e in profiled.key_averages() if e.self_device_time_total > 0]
    total = sum(e.self_device_time_total for e in events) / times / 1e3
    print(f"    {total:.3f} ms in {sum(e.count for e in events) / times:.0f} kernels")
    for e in sorted(events, key=lambda e: -e.self_device_time_total)[:rows]:
        ms = e.self_device_time_total / times / 1e3
        print(f"    {ms:9.3f} ms {e.count / times:6.1f} x {e.key[:100]}", flush=True)


# --- peers ---


def peers(number: int) -> None:
    """Whether each peer runs there at all, and about how fast."""
    case = gpu_cases()[number]
    timing = {"min_calls": 5, "min_seconds": 0.5, "max_seconds": 5.0}
    mode: Mode = "step" if len(case.system.frames) > 1 else "energy_forces"
    for name in ("cuequivariance", "mace-torch"):
        (contender,) = PEERS[name].contenders(Path(os.environ["PEERS"]), "cuda")
        try:
            done = run_job(contender, case.job(mode, "float32", 1, timing, "cuda"), 60.0)
        except MeasurementError as error:
            say(f"{case.system.name}, {mode}: {error}")
            continue
        median = statistics.median(done["timing"]["seconds"])
        say(f"{case.system.name}, {mode}, {name}: {1e3 * median:.2f} ms, {done['versions']}")


# --- variants ---


def milliseconds(call: Callable[[], object]) -> str:
    """The median of some calls, after one that compiles."""
    begun = time.monotonic()
    call()
    torch.cuda.synchronize()
    first = time.monotonic() - begun
    return f"{cuda_timing.milliseconds(call):.4f} ms (the first call {first:.1f} s)"


def variants(number: int, told: Callable[..., str], device: str = "cuda") -> None:
    """Kernels of a model's second convolution and first product, each told about in its turn."""
    from clebsch.kernels.gpu import convolution, convolution_code, polynomial_code, product
    from clebsch.kernels.gpu.tuning import Setting
    from clebsch.models.message_passing import Layer

    case = gpu_cases()[number]
    potential = assemble(case.config, list(case.species), dtype=torch.float32)
    graph = potential.graph(case.system.frames).to(device)
    first, second = (m for m in potential.model.modules() if isinstance(m, Layer))
    plan, n_channels = second.atomic_basis.plan, second.atomic_basis.radial.last.shape[2]
    say(f"{case.system.name}, {case.name}: {graph.n_atoms} atoms, {graph.n_edges} edges")

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device)

    given = (
        random(graph.n_edges, plan.n_paths, n_channels),
        random(graph.n_edges, plan.harmonic_irreps.dim),
        random(graph.n_atoms, plan.node_irreps.dim, n_channels),
    )
    cotangent = random(graph.n_atoms, plan.out_dim, n_channels)
    walked, operators = convolution.graph_tensors(graph), torch.ops.clebsch_gpu
    calls = {
        "convolve": lambda: operators.convolve(plan.key, *given, *walked),
        "convolve_gradients": lambda: operators.convolve_gradients(
            plan.key, [True, True, False], *given, cotangent, *walked
        ),
        "convolve_node_gradient": lambda: operators.convolve_gradients(
            plan.key, [False, False, True], *given, cotangent, *walked
        ),
    }
    for name, per_thread, rows, n_warps in convolutions():
        clear(convolution)
        chosen = (Setting(n_warps),)
        with (
            replaced(convolution, "PER_THREAD", convolution.PER_THREAD | {name: per_thread}),
            replaced(convolution_code, "ROWS", convolution_code.ROWS | {name: rows}),
            replaced(convolution.Call, "settings", lambda *_, chosen=chosen: chosen),
        ):
            label = f"{name}: {per_thread} channels a thread, {rows} rows, {n_warps} warps"
            say(f"  {label}: {told(calls[name])}")
    basis = random(graph.n_atoms, first.product.plan.irreps.dim, n_channels).requires_grad_()
    weights = first.product.weights.detach().to(device)
    species = graph.species

    def forward() -> torch.Tensor:
        return product.contract(first.product.plan, basis, weights, species)

    for part, most_atoms in ((64, 32), (64, 8), (64, 4), (64, 1), (96, 32), (128, 32)):
        clear(product)
        with (
            replaced(polynomial_code, "PART", part),
            replaced(product, "MOST_ATOMS", most_atoms),
            replaced(product, "FEWEST_ATOMS", min(4, most_atoms)),
        ):
            out = forward()
            along = torch.randn_like(out)

            def gradient(out: torch.Tensor = out, along: torch.Tensor = along) -> object:
                return torch.autograd.grad(out, basis, along, retain_graph=True)

            label = f"product: {part} terms a part, up to {most_atoms} atoms"
            say(f"  {label}: {told(forward)}, gradient {told(gradient)}")


def convolutions() -> Iterator[tuple[str, int, int, int]]:
    """Kernel, channels to a thread, output rows to a part at most, warps."""
    for per_thread in (4, 2, 1):
        for n_warps in (1, 2, 4):
            if n_warps <= per_thread:
                yield "convolve", per_thread, 24, n_warps
                yield "convolve_node_gradient", per_thread, 24, n_warps
        for rows in (9, 16, 40):
            yield "convolve", per_thread, rows, 1
        for rows in (9, 16, 24):
            yield "convolve_gradients", per_thread, rows, 1


def clear(module: Any) -> None:
    """Forget which kernels have been written."""
    for function in vars(module).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


@contextmanager
def replaced(where: Any, name: str, value: Any) -> Iterator[None]:
    """Another value for a while."""
    before = getattr(where, name)
    setattr(where, name, value)
    try:
        yield
    finally:
        setattr(where, name, before)


if __name__ == "__main__":
    main()
