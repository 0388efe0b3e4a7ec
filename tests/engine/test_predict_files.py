# SPDX-License-Identifier: Apache-2.0
"""Files to segment: which they are, which fail, what is left to do, and what nothing is written over."""

import shlex
import sys
from dataclasses import replace

import numpy as np
import pytest
from data.folders import nifti, picture, scan
from engine.own_runs import small_plan, write_run

from ssmis import cli
from ssmis.data import DataError
from ssmis.engine.files import find_inputs, predict_files

nib = pytest.importorskip("nibabel")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "seed_0", small_plan(values=(0, 3)))


def test_results_never_take_the_place_of_images(run, tmp_path, monkeypatch):
    source = nifti(tmp_path / "images" / "a.nii.gz", scan(0)[0])
    before = source.read_bytes()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "images")
    for out in ("images", "link", str(tmp_path / "images")):
        with pytest.raises(DataError, match=r"this is the folder of the image a\.nii\.gz"):
            predict_files(run, [source], out=out, overwrite=True, progress=False)
    assert source.read_bytes() == before
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["a.nii.gz"]


def test_a_pair_of_header_and_voxels_is_one_image(tmp_path):
    nib.save(nib.Nifti1Pair(scan(0)[0], np.eye(4)), tmp_path / "a.hdr")
    assert [case.image.name for case in find_inputs([tmp_path], small_plan())] == ["a.hdr"]


def test_a_bad_file_does_not_stop_the_others_and_resume_leaves_out_what_is_done(run, tmp_path):
    for name in "acd":
        nifti(tmp_path / f"in/{name}.nii.gz", scan(0)[0])
    bad, told = tmp_path / "in/b.nii.gz", []
    bad.write_bytes(b"no gzip")
    options = {"out": str(tmp_path / "out"), "uncertainty": True, "progress": False}
    with pytest.raises(DataError, match=r"1 of 4 images could not be segmented \(the others are in .*\): .*b.nii"):
        predict_files(run, [tmp_path / "in"], tell=told.append, **options)
    labels = [tmp_path / f"out/{name}.nii.gz" for name in "abcd"]
    assert [path.exists() for path in labels] == [True, False, True, True]
    assert len(told) == 4
    before = labels[0].stat().st_mtime_ns

    bad.unlink()
    nifti(bad, scan(0)[0])
    labels[3].unlink()  # as after an interruption: the uncertainty is there, the labels are not
    written = predict_files(run, [tmp_path / "in"], tell=told.append, resume=True, **options)
    assert [one.case for one in written] == ["b", "d"]
    assert all(path.exists() for path in labels)
    assert labels[0].stat().st_mtime_ns == before
    assert "2 of 4 results are there already" in told
    assert predict_files(run, [tmp_path / "in"], resume=True, **options) == []
    with pytest.raises(ValueError, match="overwrite and resume are both set"):
        predict_files(run, [tmp_path / "in"], resume=True, overwrite=True, **options)


def test_the_shards_of_a_folder_are_all_of_it(tmp_path):
    run = write_run(tmp_path / "run", small_plan())
    for name in "abcde":
        nifti(tmp_path / "in" / f"{name}.nii.gz", scan(0)[0])
    options = {"out": str(tmp_path / "out"), "progress": False, "device": "cpu"}
    parts = [predict_files(run, [tmp_path / "in"], shard=f"{index}/2", **options) for index in range(2)]
    assert [[own.case for own in part] for part in parts] == [["a", "c", "e"], ["b", "d"]]
    assert predict_files(run, [tmp_path / "in"], shard="6/7", **options) == []
    with pytest.raises(ValueError, match="shard is '2'; expected i/n, such as 0/4"):
        predict_files(run, [tmp_path / "in"], shard="2", **options)


def test_every_bad_file_is_named_at_the_end(run, tmp_path):
    nifti(tmp_path / "in/a.nii.gz", scan(0)[0])
    for name in "bc":
        (tmp_path / f"in/{name}.nii.gz").write_bytes(b"no gzip")
    (tmp_path / "in/d.nii.gz").mkdir()
    options = {"out": str(tmp_path / "out"), "progress": False}
    with pytest.raises(DataError) as refused:
        predict_files(run, [tmp_path / "in"], **options)
    first, *named = str(refused.value).split("\n  ")
    assert first == f"3 of 4 images could not be segmented (the others are in {tmp_path / 'out'}): "
    assert [line.split(": ")[0] for line in named] == [str(tmp_path / f"in/{name}.nii.gz") for name in "bcd"]
    assert named[2].endswith("this is a folder; expected a file")
    with pytest.raises(DataError, match="3 of 3 images could not be segmented: "):  # there are no others
        predict_files(run, [tmp_path / "in"], resume=True, **options)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.nii.gz"]


def test_labels_and_results_beside_their_image_are_no_images(run, tmp_path):
    for name in ("a", "a_seg", "b", "b_uncertainty", "c_mask"):
        nifti(tmp_path / f"in/{name}.nii.gz", scan(0)[0])
    told = []
    cases = find_inputs([tmp_path / "in"], small_plan(), tell=told.append)
    assert [case.id for case in cases] == ["a", "b", "c_mask"]  # the last one is beside nothing
    left = "a_seg.nii.gz, b_uncertainty.nii.gz"
    assert told == [f"{tmp_path / 'in'}: labels or results beside their image, left out: 2 ({left})"]
    assert [case.id for case in find_inputs([tmp_path / "in/a_seg.nii.gz"], small_plan())] == ["a_seg"]
    for name in ("d_0000", "d_0001", "d_seg"):
        nifti(tmp_path / f"channels/{name}.nii.gz", scan(0)[0])
    (case,) = find_inputs([tmp_path / "channels"], small_plan(channels=2))
    assert (case.id, len(case.channels)) == ("d", 1)


def test_two_results_of_one_name_are_refused(run, tmp_path):
    files = [nifti(tmp_path / f"in/{name}.nii.gz", scan(0)[0]) for name in ("a", "a_uncertainty")]
    options = {"out": str(tmp_path / "out"), "progress": False}
    with pytest.raises(
        DataError, match=r"a_uncertainty\.nii\.gz: a result of case 'a_uncertainty' would have the name"
    ):
        predict_files(run, files, uncertainty=True, **options)
    assert not (tmp_path / "out").exists()
    assert len(predict_files(run, files, **options)) == 2


def test_a_resume_writes_the_maps_that_are_asked_for_now(run, tmp_path):
    options = {"out": str(tmp_path / "out"), "progress": False}
    files = [nifti(tmp_path / f"in/{name}.nii.gz", scan(0)[0]) for name in "ab"]
    predict_files(run, files[:1], prob=True, **options)
    predict_files(run, files[1:], **options)
    assert [own.case for own in predict_files(run, files, prob=True, resume=True, **options)] == ["b"]
    assert (tmp_path / "out/b_prob.nii.gz").is_file()
    assert predict_files(run, files, prob=True, resume=True, **options) == []
    flat = write_run(tmp_path / "flat", small_plan(2, values=(0, 255)))
    image = picture(tmp_path / "in/c.png", np.random.default_rng(0).integers(0, 255, (20, 24)).astype(np.uint8))
    both = {**options, "prob": True, "uncertainty": True}
    predict_files(flat, [image], **both)
    assert predict_files(flat, [image], resume=True, **both) == []
    (tmp_path / "out/c_prob255.png").unlink()
    assert [own.case for own in predict_files(flat, [image], resume=True, **both)] == ["c"]


def test_a_case_with_the_name_of_a_file_is_seen_again(run, tmp_path):
    source = nifti(tmp_path / "in/a.nii.nii.gz", scan(0)[0])
    options = {"out": str(tmp_path / "out"), "progress": False}
    (written,) = predict_files(run, [source], **options)
    assert written.labels.name == "a.nii.nii.gz"
    with pytest.raises(DataError, match="is there already"):
        predict_files(run, [source], **options)


def test_ctrl_c_ends_with_the_command_that_continues(run, tmp_path, capsys, monkeypatch):
    files = [str(nifti(tmp_path / f"in/{name}.nii.gz", scan(0)[0])) for name in "abc"]
    own = sys.modules["ssmis.engine.files"]
    original, count = own.write_map, []

    def interrupted(path, *rest):
        count.append(path)
        if len(count) == 4:  # the labels of the second image, after its uncertainty
            raise KeyboardInterrupt
        return original(path, *rest)

    monkeypatch.setattr(own, "write_map", interrupted)
    words = ["predict", str(run), *files, "-o", str(tmp_path / "out"), "--uncertainty", "--progress", "false"]
    assert cli.main(words) == 130
    monkeypatch.undo()
    again = shlex.split(capsys.readouterr().err.split("interrupted; continue with: ")[1])
    assert again == ["ssmis", *words, "--resume"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir())[:2] == ["a.nii.gz", "a_uncertainty.nii.gz"]
    assert not (tmp_path / "out/b.nii.gz").exists()
    assert cli.main(again[1:]) == 0
    assert "2 images segmented" in capsys.readouterr().out
    assert len(list((tmp_path / "out").iterdir())) == 6  # nothing half-written is left


def test_the_next_command_has_what_this_one_needed(tmp_path, capsys):
    flat = write_run(tmp_path / "flat", small_plan(2, spacing=0.5))
    image = picture(tmp_path / "in/c.png", np.random.default_rng(0).integers(0, 255, (20, 24)).astype(np.uint8))
    words = ["predict", str(flat), str(image), "-o", str(tmp_path / "out"), "--spacing_mm", "0.5", "0.5", "--largest"]
    assert cli.main([*words, "--progress", "false"]) == 0
    told = capsys.readouterr().out
    assert "1 image segmented into" in told
    following = shlex.split(told.split("next: ssmis ")[1])
    assert following[-4:] == ["--largest", "--spacing_mm", "0.5", "0.5"]
    assert cli.main([*following, "--progress", "false"]) == 0


@pytest.mark.parametrize(("sized", "spacing", "refused"), [
    (None, 0.5, True), (None, 2.0, False), (True, 2.0, True), (True, 1.0, True), (False, 0.5, False),
])  # fmt: skip
def test_a_size_is_asked_for_where_the_training_knew_one(sized, spacing, refused, tmp_path):
    image = picture(tmp_path / "c.png", np.zeros((20, 24), np.uint8))
    plan = replace(small_plan(2, spacing=spacing), sized=sized)
    if refused:
        with pytest.raises(DataError, match=r"c\.png: the size of its pixels is not known"):
            find_inputs([image], plan)
        find_inputs([image], plan, spacing_mm=(0.5, 0.5))
    else:
        assert find_inputs([image], plan)
