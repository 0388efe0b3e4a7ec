# SPDX-License-Identifier: Apache-2.0
"""Rows by seeds: one table, cells that are finished for good, a study that goes on where it was."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from recipes.small import small_nets

import ssmis.study
from ssmis.data import FAMILIES, Augment, HeldOutError, load_la, write_phantoms
from ssmis.engine import FitConfig, Protocol
from ssmis.engine.lock import locked
from ssmis.metrics import compare_methods, compare_runs, read_cases_csv, summarise, summarise_seeds
from ssmis.recipes import CrossPseudo, DualUncertainty, Supervised
from ssmis.report import read_study
from ssmis.study import run

FIT = FitConfig(steps=4, optimizer="adamw", learning_rate=2e-3, precision="fp32", checkpoint_every=2)
SMALL = Protocol(
    name="small", family="phantom", patch=(16, 16, 16), stride=(16, 16, 16), augment=Augment.none(), fit=FIT
)
LISTS = {"train": "train.list", "val": "val.list", "test": "test.list"}


def cross(protocol):
    return CrossPseudo(small_nets(dims=3))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = write_phantoms(tmp_path_factory.mktemp("data"), labelled=2, unlabelled=3, test=2, size=(16, 16, 16))
    (root / "val.list").write_text("phantom_0004\n")
    return root


@pytest.fixture(scope="module")
def split(root):
    return FAMILIES["phantom"].split(root, labelled=2, lists=LISTS)


def study_of(split, out, **options):
    return run(SMALL, {"cross": cross}, split=split, out=out, progress=False, **({"seeds": 2} | options))


@pytest.fixture(scope="module")
def finished(split, tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    return study_of(split, out), out


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished[1], tmp_path / "study")


def cells(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def differences(text):
    """(row, against) -> the other cells of the table of differences."""
    rows = cells(text)
    start = next(index for index, row in enumerate(rows) if row[1] == "against")
    return {(row[0], row[1]): row[2:] for row in rows[start + 2 :]}


def test_one_table_with_everything(finished):
    study, out = finished
    assert study.finished
    text = (out / "table.md").read_text()
    assert text == str(study)
    head, _, *rows = cells(text)
    rows, told = rows[:8], rows[8:]
    assert head[:6] == ["row", "seeds", "checkpoint", "post-processing", "Dice %", "95 % interval"]
    assert head[-3:] == ["steps", "minutes", "peak MB"]
    kinds = [(row, check, post) for row in ("supervised", "cross") for check in ("last", "best")
             for post in ("none", "largest component")]  # fmt: skip
    assert [(row[0], row[2], row[3]) for row in rows] == kinds
    scores = [read_cases_csv(out / "cross" / f"seed{seed}" / "cases.csv") for seed in (0, 1)]
    dice = summarise_seeds(scores, metric="dice")
    assert rows[4][4] == f"{100 * dice.mean:.2f} ± {100 * dice.sd:.2f}"
    assert rows[4][1] == "2"
    assert "2 test cases scored" in text
    assert "flatters" not in text
    base = [read_cases_csv(out / "supervised" / f"seed{seed}" / "cases.csv") for seed in (0, 1)]
    found = compare_methods(scores, base, metric="dice")
    assert told[0][:4] == ["row", "against", "seeds", "Dice points"]
    numbers = [found.mean, *found.over_seeds, *found.over_cases, *found.over_both]
    mean, *ends = (f"{100 * number:+.2f}" for number in numbers)
    over_seeds, over_cases, over_both = (f"{ends[i]} to {ends[i + 1]}" for i in (0, 2, 4))
    assert told[2:] == [["cross", "supervised", "0 1", mean, over_seeds, over_cases, f"{found.p_value:.2g}", over_both]]


def test_the_supervised_row_has_the_nets_of_the_method(finished):
    _, out = finished
    for row, expected in (("supervised", 0), ("cross", 2)):
        record = json.loads((out / row / "seed0" / "protocol.json").read_text())
        assert record["nets"] == ["resnet", "vnet"]
        assert record["unlabelled"]["count"] == expected
        assert record["validation"]["count"] == 1
        best = json.loads((out / row / "seed0" / "best" / "protocol.json").read_text())
        assert (record["checkpoint"], best["checkpoint"]) == ("last", "best_on_validation")
        assert 1 <= best["step"] <= 4
        assert best["evaluation"]["scored"]["cases"] == ["phantom_0005", "phantom_0006"]


def test_a_finished_cell_is_not_touched_again(copied, split):
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*.csv")}
    study_of(split, copied)
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*.csv")} == before


def test_differences_are_over_the_seeds_that_both_rows_have(copied):
    shutil.rmtree(copied / "cross" / "seed0")
    study = read_study(copied)
    ((row, against), told), *others = differences(str(study)).items()
    assert (row, against, told[0], others) == ("cross", "supervised", "1", [])
    scores = [read_cases_csv(copied / row / "seed1" / "cases.csv") for row in ("cross", "supervised")]
    assert told[1] == f"{100 * compare_runs(*scores, metric='dice').mean:+.2f}"
    assert (told[2], told[3]) == ("n/a", told[5])  # one seed: nothing over seeds, and over both is over cases
    assert list(differences(study.table(against=["cross"]))) == [("supervised", "cross")]
    assert study.differences(against=[]) == []
    with pytest.raises(ValueError, match=r"against names \['paper'\]; expected some of \['supervised', 'cross'\]"):
        study.table(against=["paper"])
    shutil.rmtree(copied / "supervised" / "seed1")
    assert read_study(copied).differences() == []  # no seed in common


def test_an_interrupted_study_goes_on_and_gives_the_same(copied, split, finished, monkeypatch):
    """Cut off within a run, between training and scoring, and before a cell began."""
    shutil.rmtree(copied / "supervised" / "seed1")
    (copied / "cross" / "seed0" / "result.json").unlink()
    shutil.rmtree(copied / "cross" / "seed1")
    told = str(read_study(copied))
    assert cells(told)[-2:] == [
        ["supervised", "finished", "not begun"],
        ["cross", "trained, not scored", "not begun"],
    ]
    assert "Not finished" in told
    assert ["cross", "0 of 2", "unfinished", "unfinished"] in [row[:4] for row in cells(told)]
    assert "1 of 2, unfinished" in told

    real = ssmis.study.fit

    def cut(recipe, batches, config, **options):
        def broken(step):
            if step == 3:
                raise KeyboardInterrupt
            return batches(step)

        return real(recipe, broken if config.seed == 1 else batches, config, **options)

    monkeypatch.setattr(ssmis.study, "fit", cut)
    with pytest.raises(KeyboardInterrupt):
        study_of(split, copied)
    monkeypatch.undo()
    assert ["supervised", "finished", "step 3 of 4"] in cells(str(read_study(copied)))
    assert (copied / "cross" / "seed0" / "result.json").exists()  # seed by seed: this one was done before the cut

    again = study_of(split, copied)
    assert again.finished
    for row in ("supervised", "cross"):
        for path in ("cases.csv", "best/cases.csv", "cases_largest.csv"):
            for seed in (0, 1):
                name = f"{row}/seed{seed}/{path}"
                assert (copied / name).read_text() == (finished[1] / name).read_text(), name


def test_seeds_and_rows_may_be_added(copied, split):
    def more(protocol):
        return DualUncertainty(small_nets(dims=3), contrast_weight=0.0)

    study = run(SMALL, {"cross": cross, "dual": more}, split=split, out=copied, seeds=[0], progress=False,
                against=("supervised", "cross"))  # fmt: skip
    assert list(study.cells) == ["supervised", "cross", "dual"]
    assert [str(cell) for cell in study.cells["dual"]] == ["finished", "not begun"]
    assert ("dual", "cross") in differences(str(study))
    assert ("supervised", "cross") not in differences(str(study))  # told the other way round already
    assert differences(str(study))["dual", "cross"][0] == "0"  # cross has another seed, too
    study = study_of(split, copied, seeds=3)
    assert [cell.seed for cell in study.cells["cross"]] == [0, 1, 2]
    assert ("dual", "cross") in differences(str(study))  # what an earlier call asked for


def test_without_test_cases_the_validation_cases_are_scored_and_the_best_flatters(root, tmp_path):
    lists = {"train": "train.list", "val": "val.list"}
    split = FAMILIES["phantom"].split(root, labelled=2, lists=lists)
    study = study_of(split, tmp_path, seeds=[5])
    assert "1 validation cases scored" in str(study)
    assert "its row flatters" in str(study)
    best = json.loads((tmp_path / "cross" / "seed5" / "best" / "protocol.json").read_text())
    assert best["checkpoint"] == "best_on_scored"
    result = json.loads((tmp_path / "cross" / "seed5" / "result.json").read_text())
    scores = read_cases_csv(tmp_path / "cross" / "seed5" / "best" / "cases.csv")
    assert summarise(scores, metric="dice").mean == pytest.approx(result["best_validation_dice"])


def test_without_validation_there_is_the_last_checkpoint_only(root, tmp_path):
    lists = {"train": "train.list", "test": "test.list"}
    split = FAMILIES["phantom"].split(root, labelled=2, lists=lists)
    study = study_of(split, tmp_path, seeds=1)
    assert {row[2] for row in cells(study.table(against=[]))[2:]} == {"last"}
    assert not (tmp_path / "cross" / "seed0" / "best").exists()


def test_minutes_become_steps_once(split, tmp_path, monkeypatch):
    asked = []

    def speeds(rows, config, *, held_out):
        assert list(held_out) == list(split.test)
        asked.append(list(rows))
        for make in rows.values():
            recipe, batches = make()
            assert batches(0).labelled.shape[0] == 2
            assert isinstance(recipe, (Supervised, CrossPseudo))
        return {"supervised": 1.0, "cross": 2.0}

    monkeypatch.setattr(ssmis.study, "seconds_per_step", speeds)
    study = study_of(split, tmp_path, seeds=1, minutes=0.1)
    assert study.facts["steps"] == {"supervised": 6, "cross": 3}
    assert "0.1 minutes of training steps a run" in str(study)
    study_of(split, tmp_path, seeds=2, minutes=0.1)
    assert asked == [["supervised", "cross"]]
    with pytest.raises(ValueError, match=r"minutes was 0\.1 and is 0\.2; choose another folder"):
        study_of(split, tmp_path, minutes=0.2)


def test_a_row_that_is_added_gets_the_time_that_the_first_one_takes_now(split, tmp_path, monkeypatch):
    asked = []

    def speeds(rows, config, *, held_out):
        asked.append(list(rows))
        return {name: {"supervised": 1.0, "cross": 2.0, "more": 3.0}[name] * len(asked) for name in rows}

    monkeypatch.setattr(ssmis.study, "seconds_per_step", speeds)
    options = {"split": split, "out": tmp_path, "seeds": 1, "minutes": 0.1, "progress": False}
    run(SMALL, {"cross": cross}, **options)
    study = run(SMALL, {"more": cross}, **options)  # the machine is half as fast now
    assert asked == [["supervised", "cross"], ["supervised", "more"]]
    assert study.facts["steps"] == {"supervised": 6, "cross": 3, "more": 2}
    assert study.facts["seconds_per_step"] == {"supervised": 1.0, "cross": 2.0, "more": 3.0}


def test_another_process_keeps_its_cell(split, tmp_path):
    told = []
    with locked(tmp_path / "cross" / "seed0"):
        study = study_of(split, tmp_path, seeds=1, tell=told.append)
    assert str(study.cells["supervised"][0]) == "finished"
    assert not study.finished
    assert told[-1] == "cross, seed 0: another process trains it"


def test_a_recipe_by_name_takes_the_protocols_preset(split, tmp_path):
    protocol = replace(SMALL, widths=(4, 4, 4, 4, 4), preset="balanced", fit=replace(FIT, steps=1))
    study = run(protocol, "dual_uncertainty", split=split, out=tmp_path, seeds=1, progress=False)
    record = json.loads((tmp_path / "dual_uncertainty" / "seed0" / "protocol.json").read_text())
    assert record["method"]["class"] == "DualUncertainty"
    assert record["method"]["config"]["filter_scope"] == "class"
    assert study.finished


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"seeds": []}, r"seeds is \[\]"),
        ({"seeds": [1, 1]}, r"seeds is \[1, 1\]"),
        ({"seeds": [1.5]}, r"seeds is \[1\.5\]; expected at least one whole number below 2\*\*63, each once"),
        ({"seeds": [True]}, r"seeds is \[True\]; expected at least one whole number"),
        ({"seeds": True}, r"seeds is True; expected how many, or whole numbers below 2\*\*63, each once"),
        ({"seeds": None}, "seeds is None; expected how many"),
        ({"seeds": 1.5}, "seeds is 1.5; expected how many"),
        ({"seeds": "01"}, "expected at least one whole number"),
        ({"seeds": [2**64]}, "expected at least one whole number"),
        ({"minutes": True}, "minutes is True; expected a finite number above 0"),
        ({"minutes": float("inf")}, "minutes is inf; expected a finite number above 0"),
        ({"minutes": -1}, "minutes is -1; expected a finite number above 0"),
        ({"validations": -1}, "validations is -1; expected a whole number of at least 0"),
        ({"validations": "2"}, "validations is '2'; expected a whole number"),
        ({"steps": {"cross": 0}}, "steps of cross is 0; expected a whole number of at least 1"),
        ({"steps": {"cross": "6"}}, "steps of cross is '6'; expected a whole number of at least 1"),
        ({"steps": {"paper": 3}}, r"steps names \['paper'\]; expected some of \['supervised', 'cross'\]"),
        ({"against": ("paper",)}, r"against names \['paper'\]; expected some of \['supervised', 'cross'\]"),
    ],
)
def test_errors_name_the_argument(split, tmp_path, options, told):
    with pytest.raises(ValueError, match=told):
        study_of(split, tmp_path, **options)
    assert not list(tmp_path.iterdir())  # nothing is written that a later call would trip over


def test_errors_of_names_and_folders(split, tmp_path, copied):
    with pytest.raises(ValueError, match="unknown recipe 'dual'"):
        run(SMALL, "dual", split=split, out=tmp_path)
    with pytest.raises(ValueError, match="protocol is 'la'; expected one of 'la/paper'"):
        run("la", {"cross": cross}, split=split, out=tmp_path)
    with pytest.raises(ValueError, match="row 'a/b' names a folder"):
        run(SMALL, {"a/b": cross}, split=split, out=tmp_path)
    with pytest.raises(ValueError, match="neither test nor validation"):
        run(SMALL, {"cross": cross}, split=replace(split, val=(), test=()), out=tmp_path)
    with pytest.raises(ValueError, match="row 'all_labels' is made of `everything`"):
        run(SMALL, {"all_labels": cross}, split=split, out=tmp_path)
    with pytest.raises(ValueError, match=r"row 'table\.md' has the name of something else"):
        run(SMALL, {"table.md": cross}, split=split, out=tmp_path)
    twice = [*split.labelled, split.labelled[0]]
    for cases, told in (
        (split.test, "everything holds validation or test cases: phantom_"),
        ([replace(split.val[0], id="renamed")], "everything holds validation or test cases: renamed"),
        (split.unlabelled, "everything holds cases without a label: phantom_"),
        (twice, f"everything holds cases twice: {split.labelled[0].id}"),
    ):
        with pytest.raises(ValueError, match=told):
            run(SMALL, {"cross": cross}, split=split, everything=cases, out=tmp_path)
    with pytest.raises(ValueError, match="steps of cross was 4 and is 9; choose another folder"):
        study_of(split, copied, steps={"cross": 9})
    with pytest.raises(ValueError, match="there is no such file; expected the folder of a study"):
        read_study(tmp_path)
    with pytest.raises(ValueError, match=r"supervised/seed0 was made with other settings: protocol\.stride"):
        run(replace(SMALL, stride=(8, 8, 8)), {"cross": cross}, split=split, out=copied, seeds=2, progress=False)
    with pytest.raises(ValueError, match=r"protocol_steps was 4 and is 9"):
        run(replace(SMALL, fit=replace(FIT, steps=9)), {"cross": cross}, split=split, out=copied, progress=False)


def test_a_row_with_all_labels_and_own_steps(root, tmp_path):
    every = FAMILIES["phantom"].split(root, labelled="all", lists={"train": "train.list", "val": "val.list"})
    few = FAMILIES["phantom"].split(root, labelled=2, lists={"train": "train.list", "val": "val.list"})
    seen = []

    def watch(step, recipe):
        seen.append((step, type(recipe).__name__))
        return {"watched": float(step)}

    study = study_of(
        few,
        tmp_path,
        seeds=1,
        validations=0,
        everything=every.labelled,
        steps={"cross": 6},
        callbacks=[watch],
    )
    assert list(study.cells) == ["supervised", "cross", "all_labels"]
    records = {row: json.loads((tmp_path / row / "seed0" / "protocol.json").read_text()) for row in study.cells}
    assert [record["labelled"]["count"] for record in records.values()] == [2, 2, len(every.labelled)]
    assert [record["unlabelled"]["count"] for record in records.values()] == [0, len(few.unlabelled), 0]
    assert [record["fit"]["steps"] for record in records.values()] == [4, 6, 4]
    assert seen == [(4, "Supervised"), (6, "CrossPseudo"), (4, "Supervised")]
    assert (tmp_path / "cross" / "seed0" / "quality.csv").read_text().splitlines() == ["step,watched", "6,6"]
    text = str(study)
    assert f"all_labels on {len(every.labelled)} labelled ones" in text
    assert "flatters" not in text
    assert not (tmp_path / "cross" / "seed0" / "best").exists()


def test_the_row_with_all_labels_comes_last_whenever_it_or_another_is_added(copied, split, root):
    every = FAMILIES["phantom"].split(root, labelled="all", lists=LISTS).labelled
    assert list(study_of(split, copied, everything=every).cells) == ["supervised", "cross", "all_labels"]
    study_of(split, copied)  # without it: the row stays as it is
    study = run(
        SMALL, {"cross": cross, "b": cross}, split=split, everything=every, out=copied, seeds=[0], progress=False
    )
    assert list(study.cells) == ["supervised", "cross", "b", "all_labels"]
    with pytest.raises(ValueError, match=r"all_labels_sha256 was .* and is .*; choose another folder"):
        study_of(split, copied, everything=[*every[:-1], replace(every[-1], id="other")])


def test_studies_from_before_there_were_rows_with_all_labels_go_on(copied, split):
    path = copied / "study.json"
    facts = json.loads(path.read_text())
    del facts["all_labels"], facts["all_labels_sha256"]
    path.write_text(json.dumps(facts))
    assert study_of(split, copied).finished


def test_a_cell_is_held_until_it_is_scored(split, tmp_path, monkeypatch):
    told, score = [], Protocol.score

    def slow(protocol, recipe, cases, out):
        monkeypatch.setattr(Protocol, "score", score)
        with ThreadPoolExecutor() as pool:  # as another process would in the meantime
            pool.submit(study_of, split, tmp_path, seeds=1, tell=told.append).result()
        return score(protocol, recipe, cases, out)

    monkeypatch.setattr(Protocol, "score", slow)
    assert study_of(split, tmp_path, seeds=1).finished
    assert told[0] == "supervised, seed 0: another process trains it"


def test_nets_are_scored_alone(root, tmp_path):
    split = FAMILIES["phantom"].split(root, labelled=2, lists={"train": "train.list", "val": "val.list"})
    study = study_of(split, tmp_path / "study", seeds=1, nets_alone=True)
    kinds = ["last", *(f"last, {name} alone" for name in small_nets(dims=3)), "best"]
    assert list(study.cells["cross"][0].runs) == kinds
    assert list(dict.fromkeys(row[2] for row in cells(study.table(against=[]))[2:])) == kinds
    runs = study.cells["cross"][0].runs
    assert len({tuple(runs[kind].calibration.items()) for kind in kinds[:3]}) == 3  # three different predictions
    assert [runs[kind].fact("evaluation.nets") for kind in kinds[1:3]] == [[name] for name in small_nets(dims=3)]
    study.keep(tmp_path / "kept")
    assert str(read_study(tmp_path / "kept")) == str(study)


def test_nets_alone_of_some_seeds_only_are_counted_as_such(root, tmp_path):
    split = FAMILIES["phantom"].split(root, labelled=2, lists={"train": "train.list", "val": "val.list"})
    study_of(split, tmp_path, seeds=[0], validations=0)
    study = study_of(split, tmp_path, seeds=[0, 1], validations=0, nets_alone=True)
    rows = [row[:3] for row in cells(str(study))[2:] if row[0] == "cross" and row[3] == "none"]
    alone = [f"last, {name} alone" for name in small_nets(dims=3)]
    assert rows == [["cross", "2", "last"], *(["cross", "1 of 2", kind] for kind in alone)]


def test_without_looks_a_training_cannot_open_validation_cases(root, tmp_path):
    split = FAMILIES["phantom"].split(root, labelled=2, lists={"train": "train.list", "val": "val.list"})

    def peek(step, recipe):
        load_la(split.val[0])

    with pytest.raises(HeldOutError, match="held out"):
        study_of(split, tmp_path, seeds=1, validations=0, callbacks=[peek])


def test_what_is_kept_is_enough_for_the_table_and_to_go_on(finished, split, tmp_path):
    study, _ = finished
    files = study.keep(tmp_path / "kept")
    assert not [path for path in files if path.suffix == ".pt" or path.stat().st_size > 20_000]
    assert str(read_study(tmp_path / "kept")) == str(study)
    before = {path: path.read_bytes() for path in files}
    assert str(study_of(split, tmp_path / "kept")) == str(study)  # nothing is trained again
    assert {path: path.read_bytes() for path in files} == before
    assert not list((tmp_path / "kept").rglob("*.pt"))


def test_what_was_kept_before_stays(copied, split, tmp_path):
    kept = tmp_path / "kept"
    study_of(split, copied).keep(kept)
    study_of(split, kept, seeds=[7])  # goes on there
    found = read_study(kept)
    study_of(split, copied).keep(kept)
    assert str(read_study(kept)) == str(found)
    assert read_study(kept).facts["seeds"] == [0, 1, 7]
    with pytest.raises(ValueError, match="expected another one than the study's"):
        found.keep(kept)
    with pytest.raises(ValueError, match="expected another one than the study's"):
        found.keep(kept / "study.json")
    for inner in (kept / "cross", kept / "new" / "folder", kept / "cross" / ".." / "new"):
        with pytest.raises(ValueError, match="expected another one than the study's and outside of it"):
            read_study(kept).keep(inner)
    other = run(replace(SMALL, fit=replace(FIT, steps=1)), {"cross": cross}, split=split, out=tmp_path / "other",
                seeds=1, progress=False)  # fmt: skip
    with pytest.raises(ValueError, match="holds another study: protocol_steps, supervised, cross differ"):
        other.keep(kept)
    assert str(read_study(kept)) == str(found)
