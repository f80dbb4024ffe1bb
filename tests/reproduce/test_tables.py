"""Tables put our numbers beside the published ones and tell them apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from clebsch.cli import main
from clebsch.data.datasets import data_set
from clebsch.errors import ConfigError, DataError
from clebsch.models.presets import PRESETS
from clebsch.reproduce.results import Row, add_row, read_rows, results_file, slug
from clebsch.reproduce.suites import CURVE_SIZES, MOLECULES, SUITES, suite
from clebsch.reproduce.tables import (
    Column,
    make_document,
    published_models,
    to_html,
    to_markdown,
)

ROOT = Path(__file__).parents[2]


def row(**changes: object) -> Row:
    """A run on AcAc whose errors are 1 meV and 5.1 meV/Å at 300 K."""
    values: dict[str, object] = {
        "suite": "acac",
        "task": "300K",
        "model": "mace_small",
        "seed": 1,
        "recipe": "fast",
        "n_parameters": 227472,
        "n_train": 450,
        "n_valid": 50,
        "epochs": 300,
        "max_epochs": 300,
        "steps": 27000,
        "frames": 135000,
        "seconds": 3600.0,
        "finished": True,
        "tests": {"300 K": {"n": 650, "energy_rmse": 0.001, "forces_rmse": 0.0051}},
        "machine": {"cpu": "abacus"},
        "date": "2026-11-25T08:00:00+00:00",
    }
    return Row.model_validate(values | changes)


def table_row(text: str, label: str) -> list[str]:
    """A model's cells in the table of errors."""
    errors = text.split("## Our runs")[0].splitlines()
    (line,) = [line for line in errors if line.startswith(f"| {label} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def errors(forces: float) -> dict[str, dict[str, float]]:
    return {"300 K": {"n": 650, "energy_rmse": 0.001, "forces_rmse": forces}}


def test_a_number_of_ours_has_its_ratio_to_the_published_one() -> None:
    text = to_markdown(make_document(suite("acac"), [row(tests=errors(0.0102))]))
    cells = table_row(text, "mace_small")
    assert cells[1:3] == ["1.00 (1.11x)", "10.2 (2.00x)"]
    assert cells[3:] == ["", ""], "what was not measured stays empty"
    assert table_row(text, "MACE")[2] == "★ 5.1 ± 0.1"
    assert "Source of BOTNet, NequIP, MACE: MACE paper" in text
    assert "proton transfer is not measured" in text


def test_seeds_give_mean_and_standard_deviation_and_ours_may_be_the_best() -> None:
    rows = [
        row(tests=errors(0.004)),
        row(seed=2, tests=errors(0.006)),
        row(seed=3, tests=errors(0.005)),
    ]
    text = to_markdown(make_document(suite("acac"), rows))
    assert table_row(text, "mace_small")[2] == "★ 5.00 ± 1.00 (0.98x)"
    assert table_row(text, "MACE")[2] == "5.1 ± 0.1"
    # trained on other data before: never the best
    assert table_row(text, "MACE-OFF + MMEA")[2] == "4.2"


def test_seeds_with_settings_in_another_order_are_one_model() -> None:
    settings = ("training.max_epochs=9", "training.lr=0.01")
    rows = [
        row(tests=errors(0.004), settings=settings),
        row(seed=2, tests=errors(0.006), settings=("training.lr=1e-2", settings[0])),
    ]
    text = to_markdown(make_document(suite("acac"), rows))
    assert "5.00 ± 1.41" in table_row(text, f"mace_small {' '.join(settings)}")[2]


def test_other_recipes_and_settings_are_other_models() -> None:
    rows = [row(), row(recipe="paper"), row(settings=("training.max_epochs=9",))]
    text = to_markdown(make_document(suite("acac"), rows))
    for label in ("mace_small", "mace_small paper", "mace_small training.max_epochs=9"):
        assert len(table_row(text, label)) == 5


def test_a_run_that_is_not_over_is_marked_with_what_is_left() -> None:
    unfinished = row(finished=False, epochs=100, projected_seconds=7200.0)
    text = to_markdown(make_document(suite("acac"), [unfinished]))
    assert table_row(text, "mace_small")[2] == "5.10 (1.00x) †"
    assert "| 100 of 300 | 135 000 | 1:00:00 | 2:00:00 | abacus |" in text


def test_molecules_stand_below_each_other() -> None:
    one = row(
        suite="rmd17",
        task="benzene-50",
        model="mace_rmd17",
        tests={"test": {"n": 1000, "energy_mae": 0.0005, "forces_mae": 0.0026}},
    )
    text = to_markdown(make_document(suite("rmd17"), [one]))
    few, many = text.split("## 50 structures")[1].split("## 950 structures")
    assert few.splitlines()[2].split(" | ")[2:] == [
        "linear ACE", "NequIP", "MACE", "MACE-OFF, fine-tuned", "MACE-OFF + ELoRA",
        "MACE-OFF + MMEA", "mace_rmd17 |",
    ]  # fmt: skip
    forces = [line for line in few.splitlines() if line.startswith("| benzene | F")]
    assert forces[0].split(" | ")[-1] == "★ 2.60 (0.96x) |"
    assert "mace_rmd17" not in many.split("## Our runs")[0]


def test_learning_curves_have_slopes_and_a_figure() -> None:
    rows = [
        row(
            suite="learning-curve",
            task=f"aspirin-{count}",
            model="nu2_l0",
            n_train=count,
            tests={"test": {"n": 1000, "energy_mae": 0.01, "forces_mae": 2.0 * count**-0.75}},
        )
        for count in CURVE_SIZES
    ]
    document = make_document(suite("learning-curve"), rows)
    assert table_row(to_markdown(document), "nu2_l0")[-1] == "-0.75"
    assert document.figures["learning-curve"].axes[0].get_xscale() == "log"


def test_tasks_trained_in_several_ways_have_a_figure_of_their_course() -> None:
    curve = {"frames": [450, 900], "energy": [0.01, 0.005], "forces": [0.05, 0.02]}
    fast, paper = row(curve=curve), row(recipe="paper", curve=curve)
    assert list(make_document(suite("acac"), [fast, paper]).figures) == ["training-300K"]
    assert make_document(suite("acac"), [fast, row(recipe="paper")]).figures == {}
    # the second seed is not over: its points have partners, the first seed's last has none
    shorter = {name: values[:1] for name, values in curve.items()}
    shorter["forces"] = [0.07]
    seeds = [fast, paper, row(seed=2, finished=False, curve=shorter)]
    (figure,) = make_document(suite("acac"), seeds).figures.values()
    (line, _) = figure.axes[0].get_lines()[:2]
    assert np.allclose(line.get_xydata(), [[450, 60]])


def test_seeds_judged_at_other_structures_are_averaged_where_both_were() -> None:
    def curve(frames: list[int]) -> dict[str, list[float]]:
        errors = [1 / k for k in frames]
        return {"frames": frames, "energy": errors, "forces": errors}

    rows = [
        row(curve=curve([900, 1800, 2700])),
        row(seed=2, finished=False, curve=curve([450, 900, 1350, 1800])),
        row(recipe="paper", curve=curve([450])),
        row(model="mace_tiny", curve=curve([450])),
        row(model="mace_tiny", seed=2, curve=curve([500])),
    ]
    (figure,) = make_document(suite("acac"), rows).figures.values()
    line, other = (line for line in figure.axes[0].get_lines() if len(line.get_xydata()))
    assert np.allclose(line.get_xydata(), [[900, 1000 / 900], [1800, 1000 / 1800]])
    assert np.allclose(other.get_xydata(), [[450, 1000 / 450]])


def test_numbers_of_one_model_from_several_papers_name_each() -> None:
    notes = [note for note in make_document(suite("rmd17"), []).notes if "Source" in note]
    (many,) = [note for note in notes if "linear ACE" in note and "aspirin-950" in note]
    (few,) = [note for note in notes if "linear ACE" in note and "aspirin-50" in note]
    assert many.startswith("Source of linear ACE, NequIP for ")
    assert "Allegro paper" in many
    assert "MACE paper" in few
    assert any(note.startswith("Source of BOTNet, MACE: MACE paper") for note in notes)


def test_layers_become_lines() -> None:
    rows = [
        row(
            suite="layers",
            model=f"{family}_t{layers}",
            tests={"300 K": {"n": 9, "energy_rmse": 0.01 / layers, "forces_rmse": 0.1 / layers}},
        )
        for family in ("mace", "nequip")
        for layers in (1, 2, 3)
    ]
    document = make_document(suite("layers"), rows)
    lines = document.figures["layers-300-K-forces"].axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["mace", "nequip"]
    assert lines[0].get_ydata() == pytest.approx([100, 50, 100 / 3])


def test_pages_hold_tables_figures_and_notes() -> None:
    text = to_html(make_document(suite("acac"), [row(remark="beside <other> work")]))
    assert "5.10 (1.00x)" in text
    assert "mace_small: beside &lt;other&gt; work" in text
    assert text.count("<table") == 2


def test_published_numbers_are_those_of_the_papers() -> None:
    def entries(name: str, model: str) -> dict[Column, float]:
        (found,) = [one for one in published_models(suite(name)) if one.label == model]
        return {column: entry.value for column, entry in found.entries.items()}

    mace = entries("3bpa", "MACE, L = 2")
    assert mace[Column("300K", "300 K", "energy")] == 3.0
    assert mace[Column("300K", "600 K", "forces")] == 21.8
    assert mace[Column("300K", "dihedrals", "forces")] == 16.5
    assert entries("acac", "MACE")[Column("300K", "600 K", "forces")] == 22.4
    rmd17 = entries("rmd17", "MACE")
    assert len(rmd17) == 40
    assert rmd17[Column("aspirin-950", "test", "forces")] == 6.6
    assert rmd17[Column("uracil-50", "test", "energy")] == 4.4
    # printed the other way round in the MACE paper
    assert entries("rmd17", "NequIP")[Column("naphthalene-950", "test", "energy")] == 0.2


def test_published_numbers_belong_to_tasks_and_tests_that_exist() -> None:
    for name in SUITES:
        chosen = suite(name)
        known = {(task.name, test.name) for task in chosen.tasks for test in task.tests}
        for model in published_models(chosen):
            assert all(model.sources), model.label
            assert model.sources
            if chosen.data is not None:
                assert {(c.task, c.test) for c in model.entries} <= known, model.label


def test_suites_ask_for_files_and_models_that_exist() -> None:
    assert len(SUITES["rmd17"].tasks) == 2 * len(MOLECULES)
    for chosen in SUITES.values():
        for task in chosen.tasks:
            assert chosen.data is not None
            assert set(task.files) <= set(data_set(chosen.data).files)
        for model in chosen.models:
            assert model in chosen.variants or model in PRESETS
    with pytest.raises(ConfigError, match="Did you mean 'rmd17'"):
        suite("rmd-17")
    with pytest.raises(ConfigError, match="Did you mean 'benzene-50'"):
        suite("rmd17").task("benzen-50")
    with pytest.raises(ConfigError, match=r"unknown model 'mace_smal'\. Did you mean 'mace_small'"):
        suite("rmd17").model_settings("mace_smal")


def test_rows_are_added_and_one_of_the_same_run_is_replaced(tmp_path: Path) -> None:
    path = results_file(tmp_path / "new", "acac")
    for one in (row(), row(seed=2, finished=False), row(seed=2), row(seed=2, date="later")):
        add_row(path, one)
    assert [(one.seed, one.date[:5]) for one in read_rows(path)] == [
        (1, "2026-"), (2, "later"),
    ]  # fmt: skip
    assert read_rows(path)[0] == row()
    assert read_rows(tmp_path / "none.json") == []
    path.write_text('[{"suite": "acac"}]')
    with pytest.raises(DataError, match=r"acac.json: not a file of results"):
        add_row(path, row())
    assert path.read_text() == '[{"suite": "acac"}]'


def test_names_of_folders_differ_where_settings_do() -> None:
    assert slug("fast") == "fast"
    assert slug("a b") != slug("a_b") != slug("a/b")
    assert "/" not in slug("a/b")
    long = " ".join(f"training.number_{k}=1" for k in range(20))
    assert len(slug(long)) < 200
    assert slug(long) != slug(f"{long} more")
    assert slug("fast training.lr=0.1") == "fast_training.lr=0.1-32dcd7"


def test_the_command_prints_the_table_and_writes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_row(results_file(tmp_path, "acac"), row())
    arguments = ["reproduce", "acac", "--table", "--results", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--out", str(tmp_path / "tables")])
    assert not ended.value.code
    assert table_row(capsys.readouterr().out, "mace_small")[1]
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {"acac.md", "acac.html"}


def test_the_table_of_some_models_and_tasks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for one in (row(), row(model="mace_tiny"), row(model="mace_tiny", task="other")):
        add_row(results_file(tmp_path, "acac"), one)
    arguments = ["reproduce", "acac", "--table", "--results", str(tmp_path)]
    for chosen, lines in (
        (["--models", "mace_tiny"], ["| mace_tiny | 300K | 1", "| mace_tiny | other | 1"]),
        (["--tasks", "300K"], ["| mace_small | 300K | 1", "| mace_tiny | 300K | 1"]),
        (["--models", "mace_tiny", "--tasks", "300K"], ["| mace_tiny | 300K | 1"]),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*arguments, *chosen])
        assert not ended.value.code
        runs = capsys.readouterr().out.split("## Our runs")[1].splitlines()
        ours = [line for line in runs if line.startswith("| mace")]
        assert [line[: len(start)] for line, start in zip(ours, lines, strict=True)] == lines
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--models", "mace_tinny"])
    assert ended.value.code == 2
    assert "Did you mean 'mace_tiny'" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(ROOT.glob("benchmarks/results/*.json")))
def test_the_results_of_the_repository_can_be_read(path: Path) -> None:
    if path.stem in SUITES:
        assert read_rows(path)
    else:
        assert json.loads(path.read_text())
