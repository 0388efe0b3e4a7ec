# SPDX-License-Identifier: Apache-2.0
"""Choices of a training on data of one's own: coefficients, pieces of classes, presets; and reports of one case."""

import json
from dataclasses import replace

import pytest
from data.folders import plain
from engine.own_runs import small_plan

import ssmis
from ssmis import options
from ssmis.engine.train import train
from ssmis.engine.trained import build_recipe
from ssmis.metrics import CaseScore
from ssmis.metrics.cases import cases_csv
from ssmis.options import TrainOptions
from ssmis.recipes import UCSeg
from ssmis.registry import RECIPES
from ssmis.report._results import results_section
from ssmis.report.folders import compared
from ssmis.report.runs import ReportRun

pytest.importorskip("nibabel")
SMALL = {
    "recipe": "supervised", "nets": ["unet"], "width": 2, "progress": False, "device": "cpu", "precision": "fp32",
    "steps": 2, "patch": [8, 8, 8], "batch": 1,
}  # fmt: skip


def test_a_resume_takes_coefficients_in_any_order_and_spelling(tmp_path):
    data, out = plain(tmp_path / "data", labelled=3, unlabelled=2), str(tmp_path / "run")
    few = SMALL | {"recipe": "dual_uncertainty", "nets": ["unet", "vnet"], "test": "0"}
    train(data, out=out, coefficients=["keep_fraction=0.5", "contrast_weight=0.20"], **few)
    train(data, out=out, coefficients=["contrast_weight=0.2", "keep_fraction=5e-1"], resume=True, **few)
    with pytest.raises(ValueError, match="other options: coefficients was"):
        train(data, out=out, coefficients=["keep_fraction=0.4", "contrast_weight=0.2"], resume=True, **few)


def test_pseudo_labels_keep_one_piece_of_classes_that_are_one():
    plan = replace(small_plan(values=(0, 3, 7)), one_piece=(2,))

    def components(**options):
        return build_recipe(TrainOptions("DATA", **options), plan).config.components

    assert components() == components(preset="copy_paste") == components(recipe="uc_seg") == (2,)
    assert components(coefficients=["components=false"]) is False
    assert components(coefficients=["components=true"]) is True
    assert components(coefficients=["components=[1]"]) == [1]
    assert components(preset="late") is False
    plan = replace(plan, one_piece=None)  # of before
    assert components() is True
    for wrong in ("[3]", "True", "1", "null"):
        with pytest.raises(ValueError, match=r"components is .*; expected true, false, or a list of classes from 1"):
            components(coefficients=[f"components={wrong}"])


def test_the_gate_of_uc_seg_fits_a_patch_that_16_does_not_divide(tmp_path):
    def gate(patch, *coefficients):
        plan = replace(small_plan(), patch=patch)
        return build_recipe(TrainOptions("DATA", recipe="uc_seg", coefficients=list(coefficients)), plan)

    assert gate((32, 48, 16)).config.gate_patch == 16
    assert gate((32, 24, 6)).config.gate_patch == [16, 12, 6]
    assert gate((50, 50, 50)).config.gate_patch == 10  # not 2, whose attention takes minutes
    assert gate((47, 47, 47)).config.gate_patch == 16  # 1 would be worse than the error it meets
    assert gate((32, 24, 6), "gate_patch=[4, 4, 2]").students["fusion"].gate.patch == (4, 4, 2)
    few = SMALL | {"recipe": "uc_seg", "nets": ["unet", "vnet"], "test": "0", "steps": 1, "patch": [8, 16, 6]}
    train(plain(tmp_path / "data", labelled=2, unlabelled=2), out=str(tmp_path / "run"), **few)
    own = json.loads((tmp_path / "run" / "protocol.json").read_text())["method"]["config"]["gate_patch"]
    assert own == [8, 16, 6]


class OwnUCSeg(UCSeg):
    def __init__(self, nets, *, factor=1.0):
        super().__init__(nets, gate_patch=2)


def test_a_recipe_that_does_not_take_a_fitting_argument_is_not_given_it(monkeypatch):
    entry = RECIPES["uc_seg"]
    monkeypatch.setitem(RECIPES._entries, "own_uc_seg", replace(entry, factory=OwnUCSeg))
    plan = replace(small_plan(), patch=(32, 24, 6))
    assert build_recipe(TrainOptions("DATA", recipe="own_uc_seg"), plan).config.gate_patch == 2


def test_training_tells_what_pseudo_labels_keep(tmp_path):
    told = []
    few = SMALL | {"recipe": "dual_uncertainty", "nets": ["unet", "vnet"], "test": "0", "steps": 1}
    train(plain(tmp_path / "data", labelled=2, unlabelled=2, values=7), told.append, out=str(tmp_path / "run"), **few)
    assert "method: dual_uncertainty, preset copy_paste" in told
    assert "pseudo-labels keep only the largest piece of: 7 label 7" in told


def test_one_case_has_no_interval(tmp_path):
    for name, value in (("base", 0.5), ("new", 0.75)):
        (tmp_path / name).mkdir()
        score = CaseScore("a", 1, "ok", 1, 1, value, *[value] * 7, unit="mm")
        (tmp_path / name / "cases.csv").write_text(cases_csv([score]))
        (tmp_path / name / "metrics.csv").write_text("step,seconds\n0,1\n")
    runs = [ReportRun(name, tmp_path / name) for name in ("base", "new")]
    assert compared(runs) == "new minus base: Dice +25.00 points, one case"
    page = str(results_section(runs, ["dice", "hd95"]))
    assert "against base, one case" in page
    assert "±" not in page.replace("Mean ± standard deviation over cases", "")


@pytest.mark.parametrize(
    ("call", "given", "besides", "named"),
    [
        (ssmis.train, options.TrainOptions("DATA"), {"steps": 5}, "steps given beside TrainOptions"),
        (ssmis.compare_methods, options.CompareOptions("DATA"), {"equal_time": True}, "equal_time given beside Comp"),
        (ssmis.inspect_data, options.InspectOptions("DATA"), {"limit": 1}, "limit given beside InspectOptions"),
        (ssmis.evaluate_run, options.EvaluateOptions("RUN"), {"flips": True}, "flips given beside EvaluateOptions"),
        (ssmis.report_runs, options.ReportOptions(["RUN"]), {"out": "x"}, "out given beside ReportOptions"),
        (ssmis.export_run, options.ExportOptions("RUN"), {"out": "x"}, "out given beside ExportOptions"),
        (ssmis.predict_files, options.PredictOptions("RUN", ["A"]), {"prob": True}, "prob given beside PredictOptions"),
        (ssmis.predict_files, options.PredictOptions("RUN", ["A"]), {"inputs": ["B"]}, "inputs given beside Predict"),
    ],
)
def test_options_beside_an_object_that_holds_all_are_not_ignored(call, given, besides, named):
    with pytest.raises(TypeError, match=named):
        call(given, **besides)
