# SPDX-License-Identifier: Apache-2.0
"""Files of a run that someone made up; and a quick round of what `benchmarks/fuzz.py` and `soak.py` do at length."""

import faulthandler
import json
import os
import pickle
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from engine.own_runs import small_plan, write_run
from hypothesis import given
from hypothesis import strategies as st
from recipes.small import small_batch, small_nets

from benchmarks import fuzz, soak
from ssmis._arguments import parse
from ssmis.data import DataError
from ssmis.engine import CheckpointError, FitConfig, fit, load_checkpoint, save_checkpoint, write_evaluation
from ssmis.engine.checkpoint import FORMAT
from ssmis.engine.export import export_run, load_exported
from ssmis.engine.trained import TrainedRun
from ssmis.options import TrainOptions
from ssmis.recipes import Supervised
from ssmis.report import ReportRun
from ssmis.report.study import read_study


class Touch:
    """Leaves a file behind if it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_resume_from_a_malicious_checkpoint_runs_nothing(tmp_path):
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    last.parent.mkdir(parents=True)
    torch.save({"format": "ssmis.checkpoint", "version": 1, "state": {"step": Touch(tmp_path / "ran")}}, last)
    recipe = Supervised(small_nets(names=("vnet",)))
    with pytest.raises(CheckpointError, match=r"last\.pt holds objects that are not loaded for safety"):
        fit(recipe, small_batch, FitConfig(steps=2), out=tmp_path / "run", resume=True, progress=False)
    last.write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    with pytest.raises(CheckpointError, match=r"last\.pt is truncated or no checkpoint"):
        load_checkpoint(last)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_unpacks_to_more_than_it_holds_is_refused(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(100_000_000))
    assert path.stat().st_size < 200_000
    with pytest.raises(CheckpointError, match=r"bomb\.pt is no checkpoint: it unpacks to more than there is"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": "ssmis.checkpoint"}, "no format version or no state"),
        ({"format": "ssmis.checkpoint", "version": "x", "state": {}}, "no format version or no state"),
        ({"format": "ssmis.checkpoint", "version": 1, "state": [1]}, "no format version or no state"),
        ([1, 2], "is not a checkpoint of ssmis"),
    ],
)
def test_made_up_checkpoints_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "odd.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"odd\.pt.*{message}"):
        load_checkpoint(path)


def test_a_resume_names_what_a_checkpoint_lacks(tmp_path):
    last = tmp_path / "checkpoints" / "last.pt"
    last.parent.mkdir(parents=True)
    save_checkpoint(last, {"step": 1})
    with pytest.raises(CheckpointError, match=r"last\.pt is not a checkpoint of fit: it lacks ema, guard"):
        fit(Supervised(small_nets(names=("vnet",))), small_batch, FitConfig(), out=tmp_path, resume=True)


def with_pickle(path, value):
    """A checkpoint whose state is what these operations of a pickle leave on the stack, under the key "x"."""
    save_checkpoint(path, {"x": 1})
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in parts if name.endswith("data.pkl"))
    text = [
        b"X" + len(word).to_bytes(4, "little") + word for word in (b"format", FORMAT.encode(), b"version", b"state")
    ]
    parts[name] = b"\x80\x02}(" + text[0] + text[1] + text[2] + b"K\x01" + text[3] + b"}(X\x01\0\0\0x" + value + b"uu."
    with zipfile.ZipFile(path, "w") as archive:
        for own, content in parts.items():
            archive.writestr(own, content)


def nested(depth, first, again):
    """Each level holds the one below twice."""
    value = first + b"q\x00"
    for level in range(1, depth):
        value = again(value, b"h" + bytes([level - 1])) + b"q" + bytes([level])
    return value


def call(name, size):
    return b"c" + name + b"\n\x8a\x06" + size.to_bytes(6, "little") + b"\x85R"


BOMBS = {
    "bytes": call(b"__builtin__\nbytearray", 2**42),
    "counter": b"ccollections\nCounter\n)R",
    "tensor": b"ctorch\nTensor\nJ" + (2**28).to_bytes(4, "little") + b"\x85R",
    "lists": nested(60, b"](K\x01e", lambda value, below: b"](" + value + below + b"e"),
    "key": b"}(" + nested(60, b"K\x01K\x01\x86", lambda value, below: value + below + b"\x86") + b"K\x01u",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_checkpoint_of_a_few_bytes_cannot_stand_for_more_than_there_is(tmp_path, name):
    path = tmp_path / "bomb.pt"
    with_pickle(path, b"K\x07")
    assert load_checkpoint(path) == {"x": 7}
    with_pickle(path, BOMBS[name])
    with pytest.raises(CheckpointError, match=r"bomb\.pt.*(not loaded for safety|more than there is|is not in it)"):
        load_checkpoint(path)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("odd", ["small", "stretched", "word", "gone", "other groups"])
def test_moments_that_do_not_fit_their_parameters_are_refused_by_name(tmp_path, optimizer, odd):
    """torch would write beyond them: its fused steps look at no shape."""
    config = FitConfig(steps=4, optimizer=optimizer, precision="fp32", checkpoint_every=2)

    def broken(step):
        if step == 3:
            raise EOFError
        return small_batch(step)

    with pytest.raises(EOFError):
        fit(Supervised(small_nets(names=("vnet",))), broken, config, out=tmp_path, progress=False)
    last = tmp_path / "checkpoints" / "last.pt"
    state = load_checkpoint(last)
    name = "exp_avg" if optimizer == "adamw" else "momentum_buffer"
    for own in state["optimizer"]["state"].values():
        own[name] = {"small": torch.zeros(1), "word": "x", "stretched": own[name].flatten()[:1]}.get(odd, own[name])
        if odd == "gone":
            del own[name]
    if odd == "other groups":
        state["optimizer"]["param_groups"][0]["lr_scale"] = 1e9
    save_checkpoint(last, state)
    with pytest.raises(CheckpointError, match=r"last\.pt does not fit this recipe and its settings"):
        fit(Supervised(small_nets(names=("vnet",))), small_batch, config, out=tmp_path, resume=True, progress=False)


@pytest.mark.parametrize(
    ("entry", "value"),
    [("step", -1), ("step", "x"), ("step", 10**9), ("stage", None), ("settings", [1]), ("recipe", {"a": 1}),
     ("guard", {"steps": 3}), ("watch", {"vnet": "x"}), ("skipped", "x"), ("optimizer", {})],
)  # fmt: skip
def test_odd_entries_of_a_checkpoint_are_refused_by_name(tmp_path, entry, value):
    config = FitConfig(steps=1, precision="fp32")
    fit(Supervised(small_nets(names=("vnet",))), small_batch, config, out=tmp_path, progress=False)
    last = tmp_path / "checkpoints" / "last.pt"
    save_checkpoint(last, load_checkpoint(last) | {entry: value})
    with pytest.raises(CheckpointError, match=r"last\.pt (is not a checkpoint of fit|does not fit this recipe)"):
        fit(Supervised(small_nets(names=("vnet",))), small_batch, config, out=tmp_path, resume=True, progress=False)


def test_the_checkpoint_of_another_recipe_is_refused_by_name(tmp_path):
    config = FitConfig(steps=1, precision="fp32")
    fit(Supervised(small_nets(names=("vnet",))), small_batch, config, out=tmp_path, progress=False)
    other = Supervised({"vnet": small_nets(names=("resnet",))["resnet"]})  # what tells them apart are the weights
    with pytest.raises(CheckpointError, match=r"last\.pt does not fit this recipe.*students\.vnet"):
        fit(other, small_batch, config, out=tmp_path, resume=True, progress=False)


@pytest.mark.parametrize("value", [torch.zeros(1).expand(100), torch.eye(3).to_sparse(), torch.zeros(3, device="meta")])
def test_a_tensor_that_would_not_be_read_back_is_not_written(tmp_path, value):
    with pytest.raises(ValueError, match=r"state\['x'\] is a(n expanded)? tensor"):
        save_checkpoint(tmp_path / "last.pt", {"x": value})


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_protocol_is_named(tmp_path, content):
    (tmp_path / "protocol.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"protocol\.json: cannot be read as JSON"):
        ReportRun("run", tmp_path).settings("protocol.json")
    with pytest.raises(DataError):
        write_evaluation(tmp_path, [], {})


ALIASES = "a: &a [x, x]\n" + "".join(f"b{index}: &a [*a, *a, *a]\n" for index in range(40)) + "data: *a\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("data: !!python/object/apply:os.mkdir ['ran']\n", "line 1 has the tag 'tag:yaml.org,2002:python"),
        (ALIASES, "line 1 has an anchor or an alias"),
        ("data: " + "[" * 5000, "line 1 is nested"),
        ("data: {a: 1}\n", "line 1 is nested"),
        ("data: x\nstepps: 5\n", "there is no option 'stepps'"),
        ("config: other.yaml\n", "there is no option 'config'"),
        ("- data\n", "it holds a list"),
        ("data: [x\n", "expected ',' or ']'"),
        ("data: \udcff\n", "'utf-8' codec can't decode"),
        ("data: x\nsteps: 0x" + "f" * 9000, "steps has more than 64 bits"),
        ("data: x\npatch: [1" + ":59" * 9000 + "]", "patch has more than 64 bits"),
        ("#" * 70_000, "it has 70000 bytes; expected at most 65536"),
        ("data: x\nsteps: many\n", "steps is 'many'; expected int"),
    ],
)
def test_a_file_of_options_is_plain_or_refused_by_name(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "odd.yaml"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"odd\.yaml") as caught:
        parse("train", TrainOptions, ["--config", str(path)])
    assert message in str(caught.value)
    assert not (tmp_path / "ran").exists()
    path.write_text("data: x\nsteps: 5\npatch: [8, 8]\n")
    assert parse("train", TrainOptions, [f"--config={path}"]).patch == [8, 8]


@given(content=st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_options_or_refused_by_name(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "odd.yaml"
    path.write_bytes(b"data: x\n" + content)
    told = "odd.yaml"
    try:
        parse("train", TrainOptions, ["--config", str(path)])
    except ValueError as error:
        told = str(error)
    assert "odd.yaml" in told


@pytest.fixture
def exported(tmp_path):
    plan = small_plan(dims=2)
    export_run(write_run(tmp_path / "run", plan), out=str(tmp_path / "exported"))
    return tmp_path / "exported"


def test_weights_that_are_a_malicious_pickle_run_nothing(tmp_path, exported):
    load_exported(exported)
    torch.save({"nets": Touch(tmp_path / "ran")}, exported / "model.safetensors")
    with pytest.raises(DataError, match=r"model\.safetensors: cannot be read as the weights"):
        load_exported(exported)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        (("version",), 2, r"it is 'ssmis.export' 2"),
        (("options", "nets"), [3], r"nets is '\[3\]'"),
        (("plan", "patch"), [16, "x"], r"patch is \(16, 'x'\), which is none of a plan"),
        (("plan", "spacing_mm"), [0, 1], r"spacing_mm is \(0, 1\)"),
        (("plan", "patch"), [2**30, 2**30], r"patch: it declares .* voxels"),
        (("plan", "widths"), [60000] * 5, r"convolutions of \d+ bytes; expected at most"),
    ],
)
def test_settings_that_build_no_net_are_refused_before_it_is_built(exported, entry, value, message):
    path = exported / "config.json"
    config = json.loads(path.read_text())
    inner = config if len(entry) == 1 else config[entry[0]]
    inner[entry[-1]] = value
    path.write_text(json.dumps(config))
    with pytest.raises(DataError, match=rf"config\.json: is not what ssmis export wrote.*{message}"):
        load_exported(exported)


def test_a_run_whose_files_do_not_belong_together_names_them(tmp_path):
    run = write_run(tmp_path / "run", small_plan(dims=2))
    TrainedRun.read(run).recipe()
    save_checkpoint(run / "checkpoints" / "last.pt", {"recipe": {"other": torch.zeros(1)}, "ema": None})
    with pytest.raises(DataError, match=r"last\.pt: does not hold what options\.json and plan\.json name"):
        TrainedRun.read(run).recipe()
    options = json.loads((run / "options.json").read_text())
    (run / "options.json").write_text(json.dumps(options | {"nets": ["nine"]}))
    with pytest.raises(DataError, match=r"options\.json: unknown net 'nine'"):
        TrainedRun.read(run).recipe()
    (run / "options.json").write_text(json.dumps(options | {"steps": "9"}))
    with pytest.raises(DataError, match=r"options\.json: cannot be read \(steps is '9'; expected int"):
        TrainedRun.read(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": {"../../secret": 5}}, "case '../../secret' is no name"),
        ({"seeds": ["../x"]}, "seeds is"),
        ({"against": ["resnet"]}, "against is"),
        ({"steps": [5]}, "steps is"),
        ({"minutes": "5"}, "minutes is '5'"),
    ],
)
def test_a_study_reads_nothing_outside_of_its_folder(tmp_path, change, message):
    facts = {"protocol": "paper", "labelled": 1, "unlabelled": 0, "scored": "test", "cases": 1, "best": False}
    facts |= {"minutes": None, "seeds": [0], "against": [], "steps": {"vnet": 5}}
    (tmp_path / "study.json").write_text(json.dumps(facts))
    assert "vnet" in str(read_study(tmp_path))
    (tmp_path / "study.json").write_text(json.dumps(facts | change))
    with pytest.raises(ValueError, match=rf"study\.json: {message}"):
        read_study(tmp_path)


def test_a_quick_round_of_fuzzing_finds_nothing():
    counts, findings = fuzz.run(400, seed=1, data=None, seconds=60)
    assert findings == []
    assert sum(sum(outcomes.values()) for outcomes in counts.values()) > 20
    assert counts["h5"]["refused"] > 0


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # nibabel leaves MGH files open
def test_every_file_of_the_fuzzer_is_read_where_it_is_intact(tmp_path):
    """A reader that refuses everything would pass for a safe one."""
    for form in fuzz.formats(tmp_path / "made", None):
        path = tmp_path / form.name.replace(",", "") / form.file
        path.parent.mkdir()
        path.write_bytes(form.content)
        assert fuzz.judge(form, path) == "read", form.name


def crash(path):
    faulthandler.disable()  # pytest would print a traceback
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(path):
    while True:
        pass


def swell(path):
    return np.ones(int(1.2 * fuzz.MEMORY_MB * 2**20), dtype=np.uint8).sum()


def nameless(path):
    raise ValueError("something is wrong")


def wrong_error(path):
    raise IndexError(str(path))


@pytest.mark.parametrize(
    ("read", "found"),
    [
        (crash, "crash: ended by -11"),
        (hang, "too slow"),
        (swell, "memory"),
        (nameless, "no name"),
        (wrong_error, "other"),
    ],
)
def test_the_fuzzer_sees_what_it_looks_for(tmp_path, monkeypatch, read, found):
    monkeypatch.setattr(fuzz, "CPU_SECONDS", 0.3 if read is hang else 30)
    form = fuzz.Format("odd", "odd.bin", bytes(100), read, ValueError)
    outcomes = dict(fuzz.fuzz(form, tmp_path, [0, 1], until=float("inf")))
    assert sorted(outcomes) == [0, 1]
    assert outcomes[0].startswith(found)


def test_a_few_kills_lose_nothing(tmp_path):
    torch.set_num_threads(1)
    trial = soak.Soak(tmp_path, seed=0)
    trial.kill(3, until=float("inf"))
    assert trial.problems == []
    assert sum(trial.counts.get(f"SIG{name}", 0) for name in ("KILL", "TERM", "INT")) == 3
    assert isinstance(trial.reference, Path)
    assert trial.lost <= soak.EVERY


def test_a_soak_sees_a_run_that_differs(tmp_path):
    """The comparison is no formality: another seed, another weight."""
    for name, seed in (("a", 0), ("b", 1)):
        recipe = Supervised(small_nets(names=("vnet",), seed=seed))
        fit(recipe, small_batch, FitConfig(steps=2, precision="fp32"), out=tmp_path / name, progress=False)
    found = soak.differences(tmp_path / "a", tmp_path / "b")
    assert any("checkpoint.recipe" in line for line in found)
    assert any("metrics.csv" in line for line in found)
    assert soak.differences(tmp_path / "a", tmp_path / "a") == []
