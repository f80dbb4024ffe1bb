"""What the demonstration adds to the report: dynamics, the torsion scan, where the time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from clebsch.evaluation.page import Grid, Plot, Section, Table, Text
from clebsch.evaluation.plots import line_figure
from clebsch.simulation.md import MDResult
from clebsch.simulation.recorder import read_log
from clebsch.simulation.scan import ScanResult


def dynamics_section(result: MDResult) -> Section:
    """Total energy and temperature over time, and the drift."""
    log = read_log(result.log)
    time = log["time_ps"]
    energy = 1000 * (log["total_eV"] - log["total_eV"][0]) / result.n_atoms
    slope, intercept = np.polyfit(time, energy, 1)
    lines = {"Total energy": (time, energy), "Fit": (time, slope * time + intercept)}
    text = (
        f"{result.time_ps:g} ps at constant energy with the trained model, from a structure and "
        f"velocities of 300 K. Drift (the slope of the fitted line): {slope:.4f} meV/atom/ps. "
        f"Root mean square of the fluctuation around the line: {result.energy_rms_meV:.4f} "
        f"meV/atom. Mean temperature in the second half: {result.temperature_mean:.0f} K."
    )
    plots = [
        Plot(
            line_figure(lines, "Time (ps)", "Energy change (meV/atom)"),
            "Total energy, relative to the first step",
        ),
        Plot(
            line_figure({"T": (time, log["temperature_K"])}, "Time (ps)", "Temperature (K)"),
            "Temperature",
        ),
    ]
    return Section("Molecular dynamics", [Text(text), Grid(plots)])


def torsion_section(angles: Sequence[float], scan: ScanResult) -> Section:
    """The model's torsion energies beside xTB's."""
    model, reference = 1000 * scan.relative, scan.reference_relative
    assert reference is not None
    reference = 1000 * reference
    errors = model - reference
    text = (
        "The hydroxyl hydrogen of relaxed ethanol is turned about the C-O bond and nothing else "
        f"moves. Both curves are relative to xTB's lowest point. Largest error "
        f"{np.abs(errors).max():.1f} meV; highest above lowest point {np.ptp(model):.1f} meV, "
        f"xTB {np.ptp(reference):.1f} meV."
    )
    curves = {"xTB": (angles, reference), "Model": (angles, model)}
    axis = "Torsion H-O-C-C (degrees)"
    plots = [
        Plot(line_figure(curves, axis, "Relative energy (meV)", markers=["xTB"]), "Torsion energy"),
        Plot(
            line_figure({"Error": (angles, errors)}, axis, "Model minus xTB (meV)"),
            "Error of the torsion energy",
        ),
    ]
    return Section("Torsion scan", [Text(text), Grid(plots)])


def time_section(seconds: Mapping[str, float]) -> Section:
    """Wall time by stage, the report's own left out."""
    rows = [[stage, f"{value:.1f}"] for stage, value in seconds.items()]
    rows.append(["Sum", f"{sum(seconds.values()):.1f}"])
    return Section("Time", [Table(["Stage", "Seconds"], rows)])
