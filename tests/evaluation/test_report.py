"""The report: one page that needs nothing else, shows everything, and trusts no name."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest

from clebsch.evaluation.evaluate import evaluate
from clebsch.evaluation.page import Grid, Plot, Section, Table, Text, svg
from clebsch.evaluation.plots import (
    INK,
    element_figure,
    histogram_figure,
    learning_curves,
    line_figure,
    parity_figure,
)
from clebsch.evaluation.report import potential_facts, write_report
from clebsch.evaluation.viewer import StructureView

from .toy import ToyPotential, crystal, labelled, molecule

HOSTILE = '<script>alert("x")</script> & $\\frac{ </figure>'


def history(n: int) -> list[dict[str, object]]:
    return [
        {
            "epoch": epoch,
            "step": 10 * epoch,
            "seconds": 2.0 * epoch,
            "lr": 0.01 * 0.9**epoch,
            "train": {"loss": 1.0 / epoch},
            "valid": {"energy_per_atom_rmse": 0.02 / epoch, "forces_rmse": 0.2 / epoch},
            "best": True,
        }
        for epoch in range(1, n + 1)
    ]


def judged(frames):
    return frames, evaluate(ToyPotential(), frames)


class Page(HTMLParser):
    """The tags, references and visible text of a page, and whether its tags are balanced."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action")]
        assert not any(k.startswith("on") for k, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [v for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    molecules = [
        replace(labelled(molecule(i, "HCOHHC"), seed=i), source=f"{HOSTILE}:{i}") for i in range(40)
    ]
    for i, frame in enumerate(molecules):
        frame.info["config_type"] = HOSTILE if i % 2 else "plain"
    crystals = [labelled(crystal(i), seed=i) for i in range(6)]
    drift = line_figure({HOSTILE: ([0, 1], [0.0, 0.1])}, HOSTILE, "Energy (meV/atom)")
    write_report(
        path,
        title=HOSTILE,
        facts={"Data": HOSTILE, **potential_facts(ToyPotential())},
        history=history(12),
        evaluations={HOSTILE: judged(molecules), "crystals": judged(crystals)},
        extra=[
            Section(
                HOSTILE,
                [
                    Text(HOSTILE),
                    Table(["a", HOSTILE], [[HOSTILE, "1"]], caption=HOSTILE),
                    Grid([Plot(drift, HOSTILE)]),
                ],
            )
        ],
    )
    return path.read_text()


def test_page_needs_no_network(page):
    parsed = Page(page)
    assert parsed.open == []
    assert "link" not in parsed.tags
    assert "svg" in parsed.tags
    assert parsed.references
    assert all(r.startswith(("#", "data:image/png;base64,")) for r in parsed.references)
    urls = set(re.findall(r"https?://[^\s\"'<]+", page))
    assert urls <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not re.search(r"@import|url\((?!#)", page)
    assert len(page) < 3_000_000


def test_names_are_shown_but_never_run(page):
    assert '<script>alert("x")' not in page
    assert "</figure>:" not in page
    parsed = Page(page)
    assert parsed.text.count('<script>alert("x")</script>') > 10
    scripts = re.findall(r"<script[^>]*>", page)
    assert set(scripts) == {"<script>", '<script type="application/json">'}
    assert scripts.count("<script>") == 1


def test_page_has_every_section(page):
    text = Page(page).text
    for words in (
        "Errors",
        "Learning curves",
        "Predictions",
        "Worst structures",
        "By config_type",
        "Force errors by element",
        "Validation, forces, against time",
        "Force component errors",
        "Stress components",
        "Cut-off",
        "By energy error per atom",
    ):
        assert words in text, words


@pytest.mark.parametrize("quantity", ["energy_per_atom", "forces", "stress"])
def test_plots_show_the_errors_that_the_metrics_tell(tmp_path, quantity):
    frames = [labelled(crystal(i), seed=i) for i in range(6)]
    sets = {"crystals": judged(frames)}
    page = write_report(tmp_path / "r.html", title="t", facts={}, evaluations=sets).read_text()
    unit = {"energy_per_atom": "meV/atom", "forces": "meV/Å", "stress": "meV/Å³"}[quantity]
    (shown,) = re.findall(rf"RMSE ([\d.]+) {unit}<", page)
    expected = sets["crystals"][1].metrics[f"{quantity}_rmse"]
    assert float(shown) / 1000 == pytest.approx(expected, rel=0.02)


def test_page_holds_the_worst_structures_in_3d(page):
    drawn = re.findall(r'<script type="application/json">(.*?)</script>', page)
    data = [json.loads(text) for text in drawn]
    assert len(data) == 6
    assert len(data[0]["positions"]) == len(data[0]["arrows"]) == 6
    assert data[0]["cell"] == []
    assert len(data[-1]["cell"]) == 12


def test_arrows_turn_with_the_structure():
    frame = molecule(5, "HCOHHC")
    arrows = np.random.default_rng(0).normal(size=(6, 3))
    text = StructureView(frame, arrows, "x").html()
    data = json.loads(re.search(r"json\">(.*?)</script>", text).group(1))
    turned = np.array(data["positions"])
    offsets, expected = turned - turned[0], frame.positions - frame.positions[0]
    np.testing.assert_allclose(offsets @ offsets.T, expected @ expected.T, atol=0.02)
    moved = np.array(data["arrows"]) / 1000
    np.testing.assert_allclose(moved @ offsets.T, arrows @ expected.T, atol=0.02)
    assert np.linalg.det(offsets[1:4]) == pytest.approx(np.linalg.det(expected[1:4]), abs=0.02)


def test_energy_only_data_make_a_page_without_forces(tmp_path):
    frames = [replace(labelled(molecule(i), seed=i), forces=None) for i in range(4)]
    path = write_report(
        tmp_path / "r.html", title="t", facts={}, evaluations={"energies": judged(frames)}
    )
    text = Page(path.read_text()).text
    assert "Energy errors per atom" in text
    assert "Force" not in text.replace("Force RMSE", "")
    assert "canvas" not in Page(path.read_text()).tags


@pytest.mark.parametrize("frames", [[], [molecule(1), molecule(2)]])
def test_sets_without_frames_or_labels_make_a_page(tmp_path, frames):
    path = write_report(
        tmp_path / "r.html", title="t", facts={}, evaluations={"bare": judged(frames)}
    )
    text = Page(path.read_text()).text
    assert "bare" in text
    assert "Predictions" not in text


def test_nothing_at_all_makes_a_page(tmp_path):
    path = write_report(tmp_path / "r.html", title="empty", facts={})
    assert Page(path.read_text()).open == []


def test_an_exact_model_can_be_drawn(tmp_path):
    frames = [labelled(molecule(7), noise=0.0)]
    write_report(tmp_path / "r.html", title="t", facts={}, evaluations={"exact": judged(frames)})


@pytest.mark.parametrize("n", [1, 2])
def test_learning_curves_of_short_histories(n):
    captions = [caption for _, caption in learning_curves(history(n))]
    assert captions[0] == "Loss"
    assert captions[-1] == "Learning rate"
    for figure, _ in learning_curves(history(n)):
        svg(figure)


def test_learning_curves_show_what_there_is():
    records = history(3)
    records[1]["valid"] = {}  # an epoch without validation
    records[2]["train"] = {"loss": float("nan")}
    figures = {caption: figure for figure, caption in learning_curves(records)}
    (line, _) = figures["Validation, forces"].axes[0].get_lines()
    np.testing.assert_allclose(line.get_xdata(), [1, 3])
    np.testing.assert_allclose(line.get_ydata(), [200.0, 200.0 / 3])
    assert "Validation, stress" not in figures
    assert learning_curves([]) == []


def test_figures_take_the_colour_of_the_page():
    text = svg(parity_figure(np.arange(5.0), np.arange(5.0) + 0.1, "energy", "meV/atom"))
    assert INK not in text
    assert "currentColor" in text
    assert text.startswith("<svg")
    assert "#ffffff" not in text


def test_many_points_become_pixels():
    rng = np.random.default_rng(0)
    x = rng.normal(size=30_000)
    numbers = rng.choice([1, 6, 8], size=x.size)
    text = svg(parity_figure(x, x + 0.01, "force component", "eV/Å", numbers))
    assert "data:image/png;base64" in text
    assert len(text) < 400_000


def test_histogram_says_how_many_errors_it_does_not_show():
    errors = np.concatenate([np.linspace(-1, 1, 5000), [50.0, -60.0]])
    figure = histogram_figure(errors, "Energy", "meV/atom")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "2 beyond the axis" in texts[0]


def test_elements_stand_in_the_order_of_the_periodic_table():
    errors = {"a": {"O": {"forces_rmse": 0.1}, "H": {"forces_rmse": 0.2}}, "b": {}}
    figure = element_figure(errors)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["H", "O"]


def test_matplotlib_is_left_as_it_was(page):
    assert matplotlib.rcParams["svg.fonttype"] == matplotlib.rcParamsDefault["svg.fonttype"]
