# SPDX-License-Identifier: Apache-2.0
"""Ways in which data and commands are wrong: each builds one in a folder and returns, or raises, the message."""

import json

import numpy as np
from data.folders import RAS, nifti, picture, plain, scan
from engine.own_runs import small_plan, write_run

from ssmis._arguments import parse
from ssmis.data import find_dataset, make_plan, read_scan, survey
from ssmis.data.inspect import inspect_data
from ssmis.data.la import write_la
from ssmis.data.splits import make_split
from ssmis.engine import Predictor
from ssmis.engine.files import predict_files
from ssmis.engine.scoring import evaluate_run
from ssmis.engine.train import train
from ssmis.metrics import METRICS, CaseScore, write_cases_csv
from ssmis.options import TrainOptions
from ssmis.report.folders import report_runs

IMAGE, LABEL = scan(0)
KINDS = {}


def kind(name):
    def store(build):
        KINDS[name] = build
        return build

    return store


def found(root, issue):
    """The first finding of a kind, as `inspect` prints it."""
    return str(inspect_data(root, progress=False).of_kind(issue)[0])


def one(root, *, image=IMAGE, label=LABEL, affine=RAS, label_affine=RAS):
    nifti(root / "images/a.nii.gz", image, affine)
    nifti(root / "labels/a.nii.gz", label, label_affine)
    return root


@kind("the folder is not there")
def _(root):
    find_dataset(root / "scans")


@kind("the folder is laid out in no known way")
def _(root):
    (root / "notes.txt").write_text("x")
    find_dataset(root)


@kind("the folder of images is empty")
def _(root):
    (root / "images").mkdir()
    find_dataset(root)


@kind("two images of one name")
def _(root):
    one(root)
    nifti(root / "images/a.nii", IMAGE)
    find_dataset(root)


@kind("one image in the place of a folder")
def _(root):
    find_dataset(nifti(root / "a.nii.gz", IMAGE))


@kind("a file of an unknown kind")
def _(root):
    (root / "a.dcm").write_bytes(b"x")
    read_scan(root / "a.dcm")


@kind("an empty file")
def _(root):
    one(root)
    (root / "images/b.nii.gz").touch()
    return found(root, "unreadable")


@kind("a truncated volume")
def _(root):
    path = one(root) / "images/a.nii.gz"
    path.write_bytes(path.read_bytes()[:-200])
    return found(root, "unreadable")


@kind("a file that is no NIfTI")
def _(root):
    one(root)
    (root / "images/b.nii").write_text("this is a text" * 100)
    return found(root, "unreadable")


@kind("a truncated picture")
def _(root):
    for name in ("images", "labels"):
        picture(root / name / "a.png", np.random.default_rng(0).integers(0, 255, (60, 60)).astype(np.uint8))
    path = root / "images/a.png"
    path.write_bytes(path.read_bytes()[:2000])
    return found(root, "unreadable")


@kind("a picture of several pages")
def _(root):
    from PIL import Image

    pages = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (1, 2)]
    pages[0].save(root / "a.tif", save_all=True, append_images=pages[1:])
    read_scan(root / "a.tif")


@kind("a volume of five axes")
def _(root):
    read_scan(nifti(root / "a.nii", np.zeros((4, 4, 4, 2, 3), np.int16)))


@kind("a geometry without volume")
def _(root):
    import nibabel as nib

    image = nib.Nifti1Image(IMAGE, None)
    image.header["sform_code"] = 1
    image.header["srow_x"] = image.header["srow_y"] = [1, 0, 0, 0]
    image.header["srow_z"] = [0, 0, 1, 0]
    nib.save(image, root / "a.nii")
    read_scan(root / "a.nii")


@kind("colours as voxels")
def _(root):
    rgb = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    read_scan(nifti(root / "a.nii", rgb))


@kind("NaN in an image")
def _(root):
    image = IMAGE.astype(np.float32)
    image[:2, 0, 0] = np.nan
    return found(one(root, image=image), "not finite")


@kind("an image of one value")
def _(root):
    return found(one(root, image=np.zeros_like(IMAGE)), "constant")


@kind("channels on different grids")
def _(root):
    nifti(root / "imagesTr/a_0000.nii.gz", IMAGE)
    nifti(root / "imagesTr/a_0001.nii.gz", IMAGE[:-1])
    nifti(root / "labelsTr/a.nii.gz", LABEL)
    return found(root, "unreadable")


@kind("a label of another shape")
def _(root):
    return found(one(root, label=LABEL[:, :, :-1]), "geometry")


@kind("a label in another place")
def _(root):
    moved = RAS.copy()
    moved[0, 3] = 5
    return found(one(root, label_affine=moved), "geometry")


@kind("label values that are not declared")
def _(root):
    nifti(root / "imagesTr/a.nii.gz", IMAGE)
    nifti(root / "labelsTr/a.nii.gz", LABEL * 3)
    pair = {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}
    (root / "dataset.json").write_text(json.dumps({"labels": {"0": "none", "1": "organ"}, "training": [pair]}))
    return found(root, "label values")


@kind("label values that are no whole numbers")
def _(root):
    return found(one(root, label=LABEL * np.float32(0.5)), "label")


@kind("negative label values")
def _(root):
    return found(one(root, label=LABEL.astype(np.int16) * -7), "label")


@kind("an image in the place of a label")
def _(root):
    values = np.arange(IMAGE.size, dtype=np.int16).reshape(IMAGE.shape)
    return found(one(root, label=values), "label values")


@kind("a label in colours")
def _(root):
    picture(root / "images/a.png", np.arange(64, dtype=np.uint8).reshape(8, 8))
    picture(root / "labels/a.png", np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    return found(root, "label")


@kind("a label saved as JPEG")
def _(root):
    picture(root / "images/a.png", np.arange(64, dtype=np.uint8).reshape(8, 8))
    picture(root / "labels/a.jpg", (np.eye(16, dtype=np.uint8) * 255)[:8, :8].copy())
    return found(root, "label values")


@kind("a picture's label with soft edges")
def _(root):
    label = np.zeros((80, 80), np.uint8)
    label[40:] = 255
    label[40, :40] = np.arange(60, 100)
    picture(root / "images/a.png", np.arange(6400, dtype=np.uint16).reshape(80, 80).astype(np.uint8))
    picture(root / "labels/a.png", label)
    return found(root, "label values")


@kind("two labels of one image")
def _(root):
    nifti(one(root) / "labels/a_mask.nii.gz", LABEL)
    find_dataset(root)


@kind("a label named ignore")
def _(root):
    nifti(root / "imagesTr/a_0000.nii.gz", IMAGE)
    (root / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "organ": 1, "ignore": 2}}))
    find_dataset(root)


@kind("voxels in another unit")
def _(root):
    for index in range(3):
        size = np.diag([1e-3, 1e-3, 1e-3, 1.0]) if index == 2 else RAS
        nifti(one(root) / f"images/{index}.nii.gz", scan(index)[0], size)
    return found(root, "spacing")


@kind("a picture without a pixel size among others")
def _(root):
    for index in range(2):
        picture(root / f"images/{index}.png", np.arange(64, dtype=np.uint8).reshape(8, 8) + index)
    (root / "pixel_size.csv").write_text("filename,pixel size\n0.png,0.5\n")
    return found(root, "spacing")


@kind("a link that leads nowhere")
def _(root):
    (one(root) / "images/b.nii.gz").symlink_to(root / "gone.nii.gz")
    return found(root, "unreadable")


@kind("an empty label (a note)")
def _(root):
    return found(one(root, label=LABEL * 0), "empty label")


@kind("no label at all")
def _(root):
    nifti(root / "images/a.nii.gz", IMAGE)
    return found(root, "labels")


@kind("a label without an image (a note)")
def _(root):
    nifti(one(root) / "labels/b.nii.gz", LABEL)
    return found(root, "left over")


@kind("cases of different channels")
def _(root):
    one(root)
    nifti(root / "images/b.nii.gz", np.stack([IMAGE, IMAGE], -1))
    nifti(root / "images/c.nii.gz", IMAGE + 1)
    return found(root, "channels")


@kind("volumes and pictures in one folder")
def _(root):
    one(root)
    nifti(root / "images/b.nii.gz", IMAGE + 1)
    picture(root / "images/c.png", np.arange(64, dtype=np.uint8).reshape(8, 8))
    return found(root, "axes")


@kind("an image twice (a note)")
def _(root):
    nifti(one(root) / "images/b.nii.gz", IMAGE)
    return found(root, "duplicate")


@kind("an image nearly twice (a note)")
def _(root):
    image = IMAGE.copy()
    image[0, 0, 0] += 1
    nifti(one(root) / "images/b.nii.gz", image)
    return found(root, "near duplicate")


@kind("mixed orientations (a note)")
def _(root):
    return found(plain(root), "mixed orientation")


@kind("intensities of different scales (a note)")
def _(root):
    for index in range(3):
        nifti(one(root) / f"images/{index}.nii.gz", scan(index)[0] * np.float32(1 if index else 5000))
    return found(root, "intensity scale")


@kind("a dataset.json that is no JSON")
def _(root):
    (root / "dataset.json").write_text("{labels")
    find_dataset(root)


@kind("a dataset.json that names a missing file")
def _(root):
    (root / "dataset.json").write_text(json.dumps({"training": [{"image": "imagesTr/a.nii.gz"}]}))
    find_dataset(root)


@kind("a table without the column image")
def _(root):
    (root / "cases.csv").write_text("file,label\na,b\n")
    find_dataset(root)


@kind("a table that names a missing file")
def _(root):
    (root / "cases.csv").write_text("image\na.nii.gz\n")
    find_dataset(root)


@kind("a table with an unknown split")
def _(root):
    nifti(root / "a.nii.gz", IMAGE)
    (root / "cases.csv").write_text("image,split\na.nii.gz,holdout\n")
    find_dataset(root)


@kind("a pixel size that is no number")
def _(root):
    picture(root / "images/a.png", np.zeros((8, 8), np.uint8))
    (root / "pixel_size.csv").write_text("filename,pixel size\na.png,half\n")
    find_dataset(root)


@kind("a list that names a missing case")
def _(root):
    write_la(root, "A", IMAGE, LABEL)
    (root / "train.list").write_text("A\nB\n")
    find_dataset(root)


@kind("more labelled cases than there are")
def _(root):
    make_split(find_dataset(plain(root)), labelled=9)


@kind("an amount that is none")
def _(root):
    make_split(find_dataset(plain(root)), labelled="some")


@kind("a list of unknown cases")
def _(root):
    (root / "mine.list").write_text("x\n")
    make_split(find_dataset(plain(root)), labelled=str(root / "mine.list"))


@kind("every labelled case held out")
def _(root):
    make_split(find_dataset(plain(root)), test="all")


@kind("labels without any structure")
def _(root):
    make_plan(survey(find_dataset(one(root, label=LABEL * 0)))[0], label_names={0: "background", 1: "organ"})


@kind("a number that no training can have")
def _(root):
    train(one(root / "data"), out=str(root / "run"), steps=0, progress=False)


@kind("training on data with problems")
def _(root):
    train(one(root / "data", image=np.zeros_like(IMAGE)), out=str(root / "run"), progress=False)


@kind("an unknown recipe")
def _(root):
    train(one(root / "data"), out=str(root / "run"), recipe="superviced", progress=False)


@kind("an option of another type")
def _(root):
    (root / "config.yaml").write_text("data: x\nsteps: many\n")
    parse("train", TrainOptions, ["--config", str(root / "config.yaml")])


@kind("an unknown option")
def _(root):
    parse("train", TrainOptions, ["data", "--stepps", "3"])


@kind("a command without data")
def _(root):
    parse("train", TrainOptions, ["--steps", "3"])


@kind("a run folder that is none")
def _(root):
    Predictor.load(root)


@kind("a run that was not trained yet")
def _(root):
    (write_run(root / "run", small_plan()) / "checkpoints/last.pt").unlink()
    Predictor.load(root / "run")


@kind("nothing to predict")
def _(root):
    (root / "in").mkdir()
    predict_files(write_run(root / "run", small_plan()), [root / "in"], progress=False)


@kind("an input that is not there")
def _(root):
    predict_files(write_run(root / "run", small_plan()), [root / "b.nii.gz"], progress=False)


@kind("a picture for a run on volumes")
def _(root):
    picture(root / "a.png", np.zeros((8, 8), np.uint8))
    predict_files(write_run(root / "run", small_plan()), [root / "a.png"], out=str(root / "out"), progress=False)


@kind("a picture of unknown pixel size")
def _(root):
    picture(root / "a.png", np.arange(64, dtype=np.uint8).reshape(8, 8))
    predict_files(write_run(root / "run", small_plan(2, spacing=0.25)), [root / "a.png"], progress=False)


@kind("another number of channels than in training")
def _(root):
    nifti(root / "a.nii.gz", np.stack([IMAGE] * 2, -1))
    predict_files(write_run(root / "run", small_plan()), [root / "a.nii.gz"], out=str(root / "out"), progress=False)


@kind("a result that is there already")
def _(root):
    run, source = write_run(root / "run", small_plan()), nifti(root / "a.nii.gz", IMAGE)
    (root / "out").mkdir()
    (root / "out" / "a.nii.gz").touch()
    predict_files(run, [source], out=str(root / "out"), progress=False)


@kind("less memory than a prediction needs")
def _(root):
    run, source = write_run(root / "run", small_plan()), nifti(root / "a.nii.gz", IMAGE)
    predict_files(run, [source], out=str(root / "out"), memory_gb=0.25, progress=False)


@kind("no memory for a prediction")
def _(root):
    predict_files(write_run(root / "run", small_plan()), [root], memory_gb=0.0, progress=False)


@kind("results into the folder of the images")
def _(root):
    run, source = write_run(root / "run", small_plan()), nifti(root / "images/a.nii.gz", IMAGE)
    predict_files(run, [source], out=str(root / "images"), overwrite=True, progress=False)


@kind("an evaluation of data that have moved")
def _(root):
    evaluate_run(write_run(root / "run", small_plan(), data=root / "scans"), progress=False)


@kind("an evaluation without held-out cases")
def _(root):
    run = write_run(root / "run", small_plan(), data=plain(root / "data"))
    for role in ("labelled", "unlabelled", "val", "test"):
        (run / "split").mkdir(exist_ok=True)
        (run / "split" / f"{role}.list").touch()
    evaluate_run(run, progress=False)


@kind("a report on a run that was not evaluated")
def _(root):
    (write_run(root / "run", small_plan()) / "protocol.json").write_text("{}")
    report_runs([root / "run"], out=str(root / "report.html"))


def scored(folder, **changes):
    folder.mkdir()
    values = {"n_prediction": 100, "n_reference": 120, **dict.fromkeys(METRICS, 0.5), "unit": "mm"}
    write_cases_csv(folder / "cases.csv", [CaseScore("a", 1, "ok", **values | changes)])
    return folder


@kind("a report on scores that cannot be")
def _(root):
    report_runs([scored(root / "run", dice=7.0)], out=str(root / "report.html"))


@kind("a report on two data sets with the same case ids")
def _(root):
    report_runs([scored(root / "first"), scored(root / "second", n_reference=80)], out=str(root / "report.html"))
