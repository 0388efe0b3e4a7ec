# SPDX-License-Identifier: Apache-2.0
"""Data files that lie about their size, refer to others, or lead out of their folder."""

import os
import tracemalloc

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmis.data import Cache, Case, DataError, load_la, read_list, verify, write_la
from ssmis.data.cases import check_name
from ssmis.data.families import FAMILIES
from ssmis.data.la import FILE, FOLDER, la_cases


def case_of(path) -> Case:
    return Case("case", path, path, (1.0, 1.0, 1.0))


@pytest.fixture
def intact(tmp_path):
    return write_la(
        tmp_path / "intact", "case", np.random.default_rng(0).random((8, 8, 8)), np.ones((8, 8, 8), dtype=np.uint8)
    )


@pytest.mark.parametrize("chunks", [None, (100, 100, 100)])
def test_a_header_that_claims_a_trillion_voxels_is_refused_before_memory_is_taken(tmp_path, chunks):
    path = tmp_path / "huge.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("image", shape=(10_000,) * 3, dtype="f4", chunks=chunks)
    assert path.stat().st_size < 10_000
    tracemalloc.start()
    with pytest.raises(DataError, match=r"huge\.h5: the image: it declares .*1000000000000 voxels; expected at most"):
        load_la(case_of(path))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_data_set_without_data_is_refused(tmp_path):
    path = tmp_path / "empty.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("image", shape=(500, 500, 500), dtype="f4", chunks=(50, 50, 50))
    with pytest.raises(DataError, match=r"empty\.h5: the image has shape \(500, 500, 500\) and no data"):
        load_la(case_of(path))


def external_link(file, secret):
    file["image"] = h5py.ExternalLink(str(secret), "image")


def soft_link_over_an_external_one(file, secret):
    file["far"] = h5py.ExternalLink(str(secret), "/")
    file["image"] = h5py.SoftLink("/far/image")


def external_storage(file, secret):
    file.create_dataset("image", shape=(8, 8, 8), dtype="u1", external=[(str(secret), 0, 512)])


def virtual(file, secret):
    layout = h5py.VirtualLayout(shape=(8, 8, 8), dtype="f4")
    layout[:] = h5py.VirtualSource(str(secret), "image", shape=(8, 8, 8))
    file.create_virtual_dataset("image", layout)


@pytest.mark.parametrize("refer", [external_link, soft_link_over_an_external_one, external_storage, virtual])
def test_a_file_that_refers_to_another_is_refused(tmp_path, intact, refer):
    path = tmp_path / "refers.h5"
    with h5py.File(path, "w") as file:
        refer(file, intact)
        file["label"] = np.ones((8, 8, 8), dtype=np.uint8)
    with pytest.raises(DataError, match=r"refers\.h5: the image lies in another file; expected it in this one"):
        load_la(case_of(path))


OUT = [
    "../secret",
    "a/../../secret",
    "/etc/passwd",
    "..",
    ".",
    "a/..",
    "C:/x",
    "..\\x",
    "\\\\host\\x",
    "a\x00b",
    "a\x1b[2Jb",
]


@pytest.mark.parametrize("name", OUT)
def test_a_list_cannot_lead_out_of_the_data_folder(tmp_path, name, intact):
    (tmp_path / "la" / FOLDER / "a").mkdir(parents=True)
    path = tmp_path / "la" / "train.list"
    path.write_text(f"good\n{name}\n")
    with pytest.raises(DataError, match=r"train\.list, line 2: case .* is no name of a case") as caught:
        read_list(path)
    assert str(caught.value).isprintable()  # nor does it write to the terminal
    with pytest.raises(DataError, match="is no name of a case"):
        la_cases(tmp_path / "la", [name])
    with pytest.raises(DataError, match="is no name of a case"):
        FAMILIES["la"].case(tmp_path, name, "train")
    report = verify(tmp_path / "la", "la/cpu", lists={"train": "train.list"}, progress=False)
    assert any("is no name of a case" in finding.message for finding in report.of_kind("list"))
    assert [finding.where for finding in report.of_kind("missing")] == ["good"]


PATHS = st.lists(st.sampled_from(["..", ".", "a", "", " "]), min_size=1).map("/".join)


@given(st.text(min_size=1, max_size=30) | PATHS)
def test_a_name_that_passes_stays_inside(name):
    refused = None
    try:
        check_name(name, "list")
    except DataError as error:
        refused = str(error)
    if refused is not None:
        assert "list: case" in refused
        return
    inside = os.path.normpath(os.path.join("/data", name, FILE))
    assert inside.startswith("/data/")


@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_list_or_refused_by_name(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("list") / "train.list"
    path.write_bytes(content)
    try:
        names, refused = read_list(path), "train.list"
    except DataError as error:
        names, refused = [], str(error)
    assert all(name.isprintable() for name in names)
    assert "train.list" in refused


def test_a_list_of_many_megabytes_is_refused_unread(tmp_path):
    path = tmp_path / "train.list"
    with path.open("wb") as file:
        file.truncate(10**12)  # takes no room
    with pytest.raises(DataError, match=r"train\.list: it has 1000000000000 bytes"):
        read_list(path)


@pytest.mark.parametrize("content", [b"[]", b'{"spacing_mm": 3}', b'{"spacing_mm": ["x"]}', b"\xff", b"[" * 100_000])
def test_a_damaged_cache_entry_is_made_again(tmp_path, intact, content):
    before = np.array(Cache.build([case_of(intact)], tmp_path / "cache")["case"].image)
    (record,) = (tmp_path / "cache").glob("*.json")
    record.write_bytes(content)
    cache = Cache.build([case_of(intact)], tmp_path / "cache")
    assert np.array_equal(cache["case"].image, before)
    assert cache.spacings_mm["case"] == (1.0, 1.0, 1.0)


def test_a_cached_image_of_another_shape_is_made_again(tmp_path, intact):
    Cache.build([case_of(intact)], tmp_path / "cache")
    (image,) = (tmp_path / "cache").glob("*.image.npy")
    np.save(image, np.zeros((1, 4, 4, 4), dtype=np.float32))
    assert Cache.build([case_of(intact)], tmp_path / "cache")["case"].image.shape == (1, 8, 8, 8)
