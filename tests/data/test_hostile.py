# SPDX-License-Identifier: Apache-2.0
"""Data files that lie about their size, refer to others, or lead out of their folder."""

import gzip
import json
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmis.data import Cache, Case, DataError, Plan, find_dataset, load_la, read_list, verify, write_la
from ssmis.data.cases import check_name
from ssmis.data.families import FAMILIES
from ssmis.data.la import FILE, FOLDER, la_cases
from ssmis.data.scans import read_grid, read_scan
from ssmis.data.texts import read_json


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
    told = r"refers\.h5: the image (lies in another file; expected it in this one|is a link to '/far/image')"
    with pytest.raises(DataError, match=told):
        load_la(case_of(path))


@pytest.mark.parametrize("refer", [external_link, soft_link_over_an_external_one])
def test_what_a_link_leads_to_is_not_opened(tmp_path, refer):
    """To open a pipe would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / "refers.h5"
    with h5py.File(path, "w") as file:
        refer(file, tmp_path / "pipe")
    read = (
        "import sys; from pathlib import Path; from ssmis.data import Case; from ssmis.data.scans import case_scan\n"
        "case_scan(Case('a', Path(sys.argv[1]), None, ()))"
    )
    found = subprocess.run(
        [sys.executable, "-c", read, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert "refers.h5: the image" in found.stderr


def test_a_file_that_holds_a_chunk_of_what_it_claims_is_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "sparse.h5"
    with h5py.File(path, "w") as file:
        image = file.create_dataset("image", (800,) * 3, "f4", chunks=(16,) * 3, compression="gzip")
        image[:16, :16, :16] = 1
        file.create_dataset("label", data=np.zeros((64,) * 3, "u1"), chunks=(64,) * 3, compression="gzip")
    assert path.stat().st_size < 10_000
    with pytest.raises(DataError, match=r"sparse\.h5: the image declares \(800, 800, 800\) voxels of float32 and has"):
        load_la(case_of(path))
    with h5py.File(path, "a") as file:  # what packs best is read
        del file["image"]
        file.create_dataset("image", data=np.zeros((64,) * 3, "f4"), chunks=(64,) * 3, compression="gzip")
    assert load_la(case_of(path)).image.shape == (1, 64, 64, 64)


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


READERS = {
    **dict.fromkeys(("a.nii", "a.nii.gz", "a.mgz", "a.hdr", "a.png", "a.tif", "a.jpg", "a.bmp"), read_scan),
    **dict.fromkeys(("cases.csv", "cases.json"), find_dataset),
    "dataset.json": lambda path: find_dataset(path.parent),
    "plan.json": Plan.read,
}
NAMES = sorted(READERS)


def nifti_bytes(*, shape=(8, 8, 8), start=352.0, extension=b"\0" * 4, order="<"):
    """A NIfTI file of int16 zeros, as anyone can write it."""
    head = bytearray(348)
    struct.pack_into(order + "i", head, 0, 348)
    struct.pack_into(order + "8h", head, 40, len(shape), *shape, *[1] * (7 - len(shape)))
    struct.pack_into(order + "2h", head, 70, 4, 16)
    struct.pack_into(order + "8f", head, 76, *[1.0] * 8)
    struct.pack_into(order + "f", head, 108, start)
    head[344:348] = b"n+1\0"
    return bytes(head) + extension + bytes(2 * 8**3)


@pytest.mark.parametrize("order", "<>")
def test_the_volume_that_is_damaged_below_is_read(tmp_path, order):
    (tmp_path / "a.nii").write_bytes(nifti_bytes(order=order))
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(nifti_bytes(order=order)))
    assert read_scan(tmp_path / "a.nii").image.shape == read_scan(tmp_path / "a.nii.gz").image.shape == (1, 8, 8, 8)
    comment = struct.pack(order + "ii", 32, 6) + b"comment".ljust(24, b"\0")
    packed = gzip.compress(nifti_bytes(start=384.0, extension=b"\1\0\0\0" + comment, order=order))
    (tmp_path / "b.nii.gz").write_bytes(packed)
    assert len(read_scan(tmp_path / "b.nii.gz").grid.header.extensions) == 1


BOMBS = {
    "a trillion voxels": (nifti_bytes(shape=(10_000,) * 3), "it declares .* 1000000000000 voxels; expected at most"),
    "more than there is": (
        nifti_bytes(shape=(1000, 1000, 1000)),
        r"perhaps truncated \(it declares \(1000, 1000, 1000",
    ),
    "a header of a gigabyte": (nifti_bytes(start=2.0**30), "its voxels begin at byte 1073741824; expected a header of"),
    "an extension of a gigabyte": (
        nifti_bytes(start=384.0, extension=b"\1\0\0\0" + struct.pack("<ii", 2**30, 6)),
        "an extension of the header has 1073741824 bytes; expected 16 to 32",
    ),
    "an extension without end": (
        nifti_bytes(start=384.0, extension=b"\1\0\0\0" + struct.pack("<ii", 0, 6)),
        "an extension of the header has 0 bytes",
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_packed_volume_cannot_take_more_memory_than_a_scan(tmp_path, bomb):
    content, message = BOMBS[bomb]
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(content + bytes(10_000_000 if "gigabyte" in bomb else 0)))
    assert path.stat().st_size < 20_000
    for read in (read_scan, read_grid):
        tracemalloc.start()
        with pytest.raises(DataError, match=rf"bomb\.nii\.gz: .*{message}"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
        tracemalloc.stop()


@pytest.mark.parametrize("shape", [(10_000, 10_000, 10_000), (1000, 1000, 1000)])
def test_a_volume_that_claims_more_than_its_file_is_refused(tmp_path, shape):
    path = tmp_path / "short.nii"
    path.write_bytes(nifti_bytes(shape=shape))
    with pytest.raises(DataError, match=r"short\.nii: .*it declares \(10+, 10+, 10+\)"):
        read_scan(path)


def png_bytes(width, height):
    """A PNG of one bit a pixel whose rows are zeros; their checksums are right."""
    packed = zlib.compress(bytes(min((width // 8 + 1) * height, 10_000_000)), 9)
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b""))
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("size", [(60_000, 60_000), (12_000, 12_000), (9000, 9000)])
def test_a_picture_that_claims_more_than_it_can_hold_is_refused(tmp_path, size):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_bytes(*size) if size[0] > 9000 else png_bytes(8, 8)[:16] + png_bytes(*size)[16:200])
    for read in (read_scan, read_grid):
        with pytest.raises(DataError, match=r"bomb\.png: .*pixels"):
            read(path)
    path.write_bytes(png_bytes(2000, 3000))  # an empty mask packs as well as anything can
    assert read_scan(path).image.shape == (1, 3000, 2000)


@pytest.mark.parametrize("name", [name for name in OUT if name not in ("a/..",)])
@pytest.mark.parametrize("column", ["image", "label", "id"])
def test_a_table_cannot_lead_out_of_its_folder(tmp_path, name, column):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.nii").write_bytes(nifti_bytes())
    row = {"image": "a.nii", "label": "a.nii", "id": "a", column: name}
    (tmp_path / "data" / "cases.json").write_text(json.dumps([row]))
    with pytest.raises(DataError, match=r"cases\.json, case 1: case .* is no name of a case") as caught:
        find_dataset(tmp_path / "data")
    assert str(caught.value).isprintable()


def test_a_table_that_names_a_case_twice_is_named_itself(tmp_path):
    (tmp_path / "a.nii").write_bytes(nifti_bytes())
    (tmp_path / "cases.csv").write_text("image\na.nii\na.nii\n")
    with pytest.raises(DataError, match=r"cases\.csv, case 2: case 'a' was already named"):
        find_dataset(tmp_path)


@pytest.mark.parametrize("role", ["training", "test"])
@pytest.mark.parametrize("name", ["../secret.nii", "/etc/passwd"])
def test_dataset_json_cannot_lead_out_of_its_folder(tmp_path, name, role):
    (tmp_path / "secret.nii").write_bytes(nifti_bytes())
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"training": [], role: [{"image": name}]}))
    with pytest.raises(DataError, match=rf"dataset\.json, {role}: case .* is no name of a case"):
        find_dataset(tmp_path / "data")


ODD = ['{"training": [[]]}', '{"training": [{"image": 3}]}', '{"training": [], "labels": [1]}', "[1]", "[" * 100_000]


@pytest.mark.parametrize("content", [*ODD, '{"training": [], "test": "x"}'])
def test_an_odd_dataset_json_is_named(tmp_path, content):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DataError, match=r"dataset\.json"):
        find_dataset(tmp_path)


@pytest.mark.parametrize("length", ["0", "-1", "nan", "inf"])
def test_a_spacing_that_is_none_is_refused(tmp_path, length):
    (tmp_path / "a.nii").write_bytes(nifti_bytes())
    (tmp_path / "cases.csv").write_text(f"image,spacing_mm\na.nii,1;{length};1\n")
    with pytest.raises(DataError, match=r"cases\.csv, case 1: spacing_mm is .*; expected lengths"):
        find_dataset(tmp_path)


def test_a_text_of_many_megabytes_is_refused_unread(tmp_path):
    with (tmp_path / "plan.json").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(DataError, match=r"plan\.json: it has 1000000000000 bytes"):
        read_json(tmp_path / "plan.json")


@given(content=st.binary(max_size=200) | st.text(max_size=100).map(str.encode), name=st.sampled_from(NAMES))
def test_any_bytes_are_read_or_refused_by_name(tmp_path_factory, content, name):
    path = tmp_path_factory.mktemp("any") / name
    path.write_bytes(content)
    told = name
    try:
        READERS[name](path)
    except DataError as error:
        told = str(error)
    assert name in told


@pytest.mark.parametrize("name", ["a\nb", "a\u2028b", " a", os.fsdecode(b"sc\xff")])
def test_a_file_name_that_no_list_can_hold_is_refused_by_name(tmp_path, name):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        for own in (name, "b"):
            (tmp_path / folder / f"{own}.nii.gz").write_bytes(b"not read")
    with pytest.raises(DataError, match="expected a name without line breaks") as caught:
        find_dataset(tmp_path)
    assert ascii(name)[1:-1] in str(caught.value).encode("utf-8").decode()


def test_a_dataset_json_that_lists_nothing_is_named(tmp_path):
    (tmp_path / "dataset.json").write_text('{"labels": {"0": "rest"}, "training": []}')
    with pytest.raises(DataError, match=r"dataset\.json: it lists no image for training"):
        find_dataset(tmp_path)
