"""Figures of the report: learning curves, parity, error histograms, errors per element, lines.

Figures are made as ``matplotlib.figure.Figure`` objects, never through pyplot's global state. Text
and axes are drawn in ``INK``, which ``clebsch.evaluation.page`` turns into the page's own text
colour, so that one figure serves light and dark pages; backgrounds are transparent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike

#: Stands for "the text colour of the page"; no data are drawn in it.
INK = "#0b0c0d"

#: Okabe and Ito's colours for colour-blind readers, black and yellow left out and the two blues
#: set apart, so that all of them can be told from a light and from a dark page.
COLORS = ("#2f7ebc", "#d55e00", "#109e73", "#c7669e", "#e09f1f", "#56b4e9", "#8c6bb1", "#7f8c8d")

#: Points of a parity plot beyond which only every k-th is drawn.
MAX_POINTS = 200_000

#: Letters of a legend that fit into a line.
_LEGEND_LINE = 40

_SIZE = (4.6, 3.4)
_SQUARE = (4.3, 4.1)


def line_figure(
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    xlabel: str,
    ylabel: str,
    *,
    log: bool = False,
    markers: Sequence[str] = (),
    size: tuple[float, float] = _SIZE,
) -> Figure:
    """Lines over a common pair of axes.

    Args:
        series: ``{label: (x, y)}``; a legend is drawn when there are several.
        xlabel, ylabel: with units.
        log: logarithmic y axis; values that are not positive are left out.
        markers: labels of the series to draw as points without a line (reference data).
        size: inches.
    """
    figure, axes = _axes(xlabel, ylabel, size)
    for k, (label, (x, y)) in enumerate(series.items()):
        xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        shown = np.isfinite(ys) & (ys > 0 if log else True)
        points = label in markers
        few = points or shown.sum() <= 25
        axes.plot(
            xs[shown],
            ys[shown],
            color=COLORS[k % len(COLORS)],
            linestyle="none" if points else "-",
            marker="o" if few else None,
            markersize=4.5 if points else 3,
            linewidth=1.6,
            label=label,
            zorder=3 if points else 2,
        )
    if log:
        _log_axis(axes)
    if len(series) > 1:
        fits = sum(map(len, series)) <= _LEGEND_LINE
        columns = len(series) if fits else 1
        _legend(axes, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns)
    return figure


def learning_curves(history: Sequence[Mapping[str, Any]]) -> list[tuple[Figure, str]]:
    """Loss, validation errors and learning rate against epochs, with a caption each.

    Args:
        history: the lines of metrics.jsonl.
    """
    epochs = [record["epoch"] for record in history]
    figures = []
    loss = {
        name: _column(history, part, "loss", 1.0)
        for name, part in (("Training", "train"), ("Validation", "valid"))
    }
    loss = {name: values for name, values in loss.items() if np.isfinite(values).any()}
    if loss:
        lines = {name: (epochs, values) for name, values in loss.items()}
        figures.append((line_figure(lines, "Epoch", "Loss", log=True), "Loss"))
    for quantity, title, unit in (
        ("forces", "Validation, forces", "meV/Å"),
        ("energy_per_atom", "Validation, energy per atom", "meV/atom"),
        ("stress", "Validation, stress", "meV/Å³"),
    ):
        lines = {
            kind.upper(): (epochs, _column(history, "valid", f"{quantity}_{kind}", 1000.0))
            for kind in ("rmse", "mae")
        }
        if any(np.isfinite(y).any() for _, y in lines.values()):
            figure = line_figure(lines, "Epoch", f"Error ({unit})", log=True)
            figures.append((figure, title))
    minutes = np.array([record.get("seconds", np.nan) for record in history], dtype=float) / 60
    forces = _column(history, "valid", "forces_rmse", 1000.0)
    if (np.isfinite(minutes) & np.isfinite(forces)).any():
        figure = line_figure(
            {"RMSE": (minutes, forces)}, "Wall time (min)", "Force RMSE (meV/Å)", log=True
        )
        figures.append((figure, "Validation, forces, against time"))
    rates = [record.get("lr", np.nan) for record in history]
    if np.isfinite(np.asarray(rates, dtype=float)).any():
        figure = line_figure({"lr": (epochs, rates)}, "Epoch", "Learning rate")
        figures.append((figure, "Learning rate"))
    return figures


def parity_figure(
    reference: np.ndarray,
    predicted: np.ndarray,
    quantity: str,
    unit: str,
    numbers: np.ndarray | None = None,
) -> Figure:
    """Predicted against reference values, with the line y = x.

    Args:
        reference, predicted: [n].
        quantity, unit: for the axes.
        numbers: [n] atomic numbers, to colour the points by element.
    """
    figure, axes = _axes(f"Reference {quantity} ({unit})", f"Predicted ({unit})", _SQUARE)
    step = max(1, -(-len(reference) // MAX_POINTS))
    x, y = reference[::step], predicted[::step]
    low, high = _padded(min(x.min(), y.min()), max(x.max(), y.max()))
    axes.plot([low, high], [low, high], color=INK, linewidth=0.8, alpha=0.55, zorder=1)
    style: dict[str, Any] = {
        "s": 9 if len(x) < 5000 else 4,
        "alpha": float(np.clip(25 / np.sqrt(len(x)), 0.12, 0.8)),
        "linewidths": 0,
        "rasterized": len(x) > 500,
        "zorder": 2,
    }
    kinds = [] if numbers is None else np.unique(numbers).tolist()
    colors = np.full(len(x), COLORS[0])
    if numbers is not None and 1 < len(kinds) <= len(COLORS):
        for number, color in zip(kinds, COLORS, strict=False):
            colors[numbers[::step] == number] = color
            axes.scatter([], [], color=color, s=22, linewidths=0, label=chemical_symbols[number])
        _legend(axes, loc="lower right")
    # In random order, so that no element hides the others.
    order = np.random.default_rng(0).permutation(len(x))
    axes.scatter(x[order], y[order], c=colors[order], **style)
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    _note(axes, _errors_text(predicted - reference, unit))
    return figure


def histogram_figure(errors: np.ndarray, quantity: str, unit: str) -> Figure:
    """How errors are distributed, on a logarithmic scale so that the tails can be seen.

    The range covers 99.8 % of the errors at least; those beyond are counted in the figure.

    Args:
        errors: [n], predicted minus reference.
        quantity, unit: for the axis.
    """
    figure, axes = _axes(f"{quantity} error ({unit})", "Count", _SIZE)
    limit = float(np.quantile(np.abs(errors), 0.998)) * 1.15 or 1.0
    beyond = int((np.abs(errors) > limit).sum())
    n_bins = int(np.clip(np.sqrt(len(errors)), 11, 81)) | 1  # odd: one bin sits on zero
    axes.hist(
        errors,
        bins=n_bins,
        range=(-limit, limit),
        color=COLORS[0],
        alpha=0.8,
        histtype="stepfilled",
        log=True,
    )
    axes.axvline(0.0, color=INK, linewidth=0.8, alpha=0.55)
    axes.set_xlim(-limit, limit)
    axes.set_ylim(bottom=0.6)
    top = axes.get_ylim()[1]
    axes.set_ylim(top=top * (top / 0.6) ** 0.28)  # room for the numbers
    _log_ticks(axes)
    text = f"mean {_short(float(errors.mean()))} {unit}"
    if beyond:
        text += f"\n{beyond} beyond the axis"
    _note(axes, text)
    return figure


def element_figure(per_element: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """Force RMSE of each element as bars, one colour per set.

    Args:
        per_element: ``{set: {symbol: {"forces_rmse": eV/Angstrom, ...}}}``.
    """
    symbols = sorted({s for errors in per_element.values() for s in errors}, key=_number)
    width = min(11.0, max(_SIZE[0], 1.6 + 0.28 * len(symbols) * (1 + len(per_element))))
    figure, axes = _axes("", "Force RMSE (meV/Å)", (width, _SIZE[1]))
    bar = 0.8 / len(per_element)
    for k, (name, errors) in enumerate(per_element.items()):
        places = [i - 0.4 + (k + 0.5) * bar for i, s in enumerate(symbols) if s in errors]
        heights = [1000 * errors[s]["forces_rmse"] for s in symbols if s in errors]
        color = COLORS[k % len(COLORS)]
        bars = axes.bar(places, heights, width=0.92 * bar, color=color, label=_plain(name))
        if len(symbols) * len(per_element) <= 16:
            texts = [_short(height) for height in heights]
            axes.bar_label(bars, texts, fontsize=8, padding=2, color=INK)
    axes.set_xticks(range(len(symbols)), symbols)
    axes.tick_params(axis="x", length=0)
    axes.margins(y=0.14)
    if len(per_element) > 1:
        axes.set_ylim(top=axes.get_ylim()[1] * (1 + 0.09 * len(per_element)))
        _legend(axes, loc="upper left")
    return figure


def _axes(xlabel: str, ylabel: str, size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    axes.set_xlabel(_plain(xlabel), color=INK, fontsize=10)
    axes.set_ylabel(_plain(ylabel), color=INK, fontsize=10)
    axes.tick_params(which="both", colors=INK, labelsize=9, width=0.8)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set(color=INK, linewidth=0.8)
    axes.grid(True, color=INK, alpha=0.12, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _log_axis(axes: Axes) -> None:
    """A logarithmic y axis that never spans less than a third of a decade."""
    axes.set_yscale("log")
    low, high = axes.dataLim.intervaly
    if np.isfinite([low, high]).all() and low > 0:
        middle, half = np.sqrt(low * high), max(np.sqrt(high / low) * 1.08, 10**0.17)
        axes.set_ylim(middle / half, middle * half)
    _log_ticks(axes)


def _log_ticks(axes: Axes) -> None:
    """Plain numbers at 1, 2, 5 within a few decades, else at powers of ten alone."""
    low, high = axes.get_ylim()
    decades = np.log10(high / low)
    subs = (1.0, 2.0, 5.0) if decades < 2.2 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short_power(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(axes: Axes, **place: Any) -> None:
    axes.legend(**place, frameon=False, fontsize=9, labelcolor=INK, handlelength=1.4)


def _note(axes: Axes, text: str) -> None:
    axes.text(
        0.03, 0.97, text, transform=axes.transAxes, va="top", ha="left", fontsize=9, color=INK
    )


def _errors_text(errors: np.ndarray, unit: str) -> str:
    mae, rmse = float(np.abs(errors).mean()), float(np.sqrt(np.mean(errors**2)))
    if unit.startswith("eV"):
        mae, rmse, unit = 1000 * mae, 1000 * rmse, f"m{unit}"
    return f"MAE {_short(mae)} {unit}\nRMSE {_short(rmse)} {unit}"


def _column(history: Sequence[Mapping[str, Any]], part: str, key: str, factor: float) -> np.ndarray:
    """One number of every record, NaN where a record does not have it."""
    values = [(record.get(part) or {}).get(key) for record in history]
    return factor * np.array([np.nan if v is None else v for v in values], dtype=float)


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = 0.05 * (high - low) or max(1e-3, 0.05 * abs(high))
    return low - margin, high + margin


def _short(value: float) -> str:
    size = abs(value)
    decimals = 0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 0.1 else 3
    return f"{value:.{decimals}f}".replace("-", "−")  # noqa: RUF001 - a minus sign, not a hyphen


def _short_power(value: float) -> str:
    return f"{value:g}".replace("e-0", "e-").replace("e+0", "e")


def _number(symbol: str) -> int:
    return chemical_symbols.index(symbol)


def _plain(text: str) -> str:
    """Text that matplotlib draws as it is: a dollar sign starts no formula."""
    return text.replace("$", r"\$")
