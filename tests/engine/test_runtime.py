# SPDX-License-Identifier: Apache-2.0
import getpass
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ssmis.engine import runtime
from ssmis.engine.runtime import (
    Precision,
    apply_memory_format,
    cpu_has_fast_bf16,
    environment,
    memory_format_for,
    peak_memory_mb,
    pick_device,
    pick_precision,
    seed_everything,
)


def test_auto_takes_a_gpu_if_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto").type == "cuda"
    assert pick_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", ["cuda:63", "no_such_device"])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(ValueError, match=rf"device is '{name}', which is not available here"):
        pick_device(name)


def test_auto_precision_is_bf16_only_where_the_hardware_has_it(monkeypatch):
    for fast, name in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(runtime, "cpu_has_fast_bf16", lambda fast=fast: fast)
        assert pick_precision("auto", "cpu").name == name
    for supported, name in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, s=supported: s)
        assert pick_precision("auto", "cuda").name == name
    assert pick_precision("auto", "mps").name == "fp32"


def test_the_cpu_probe_survives_other_versions_of_torch(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert cpu_has_fast_bf16()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not cpu_has_fast_bf16()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    for name in ("get_capabilities", "_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not cpu_has_fast_bf16()


def test_precisions_are_checked():
    with pytest.raises(ValueError, match=r"precision is 'half'; expected one of"):
        pick_precision("half")
    with pytest.raises(ValueError, match=r"precision is 'fp16' on a CPU"):
        pick_precision("fp16", "cpu")


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_runs_convolutions_in_the_precision(name, dtype):
    precision = pick_precision(name, "cpu")
    with precision.autocast():
        assert nn.Conv2d(1, 2, 3)(torch.rand(1, 1, 5, 5)).dtype == dtype
    assert precision.dtype == dtype
    assert not precision.needs_scaler
    assert Precision("fp16", "cuda").needs_scaler


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2)], torch.channels_last_3d),
        ([nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)], torch.channels_last),
        ([nn.ConvTranspose3d(1, 2, 2), nn.BatchNorm3d(2)], torch.channels_last_3d),
        ([nn.Conv3d(1, 2, 3), nn.InstanceNorm3d(2)], torch.contiguous_format),
        ([nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2), nn.InstanceNorm3d(2)], torch.contiguous_format),
        ([nn.Conv3d(1, 2, 3), nn.Conv2d(1, 2, 3), nn.BatchNorm3d(2)], torch.contiguous_format),
        ([nn.Conv3d(1, 2, 3)], torch.contiguous_format),
        ([nn.Linear(1, 2), nn.BatchNorm1d(2)], torch.contiguous_format),
    ],
)
def test_memory_format_follows_the_norm(layers, expected):
    assert memory_format_for(nn.Sequential(*layers)) == expected


def test_only_convolution_weights_change_their_layout_and_no_value_does():
    net = nn.Sequential(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), nn.Conv2d(2, 4, 3))
    net.register_buffer("bank", torch.rand(2, 3, 4, 5, 6))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    parameters = list(net.parameters())
    apply_memory_format(net, torch.channels_last_3d)
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert not net[0].weight.is_contiguous()
    assert net[2].weight.is_contiguous()
    assert net.bank.is_contiguous()
    assert all(a is b for a, b in zip(parameters, net.parameters()))
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])
    apply_memory_format(net, torch.contiguous_format)
    assert net[0].weight.is_contiguous()


def test_peak_memory_is_what_the_system_says():
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("this system has no /proc to compare with")
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    assert peak_memory_mb() == pytest.approx(int(line.split()[1]) / 1024, rel=0.05)


@pytest.mark.parametrize("key", [0, 123, 2**70 + 5, -3])
def test_seeding_repeats_dropout(key):
    drop = nn.Dropout(0.5)
    seed_everything(key)
    first = drop(torch.ones(100))
    other = drop(torch.ones(100))
    seed_everything(key)
    assert torch.equal(drop(torch.ones(100)), first)
    assert not torch.equal(first, other)


def test_environment_is_plain_json_without_names_of_the_machine():
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert found["packages"]["torch"] == torch.__version__ or found["packages"]["torch"] in torch.__version__
    assert {"python", "system", "gpus", "cpu_fast_bf16", "threads"} <= set(found)
    text = json.dumps(found)
    assert str(Path.home()) not in text or len(str(Path.home())) < 2
    assert platform.node() not in text or len(platform.node()) < 4
    assert getpass.getuser() not in text or len(getpass.getuser()) < 5


FREED_AND_TAKEN_AGAIN = """
import resource, torch
from ssmis.engine.runtime import freed_memory_kept
torch.set_num_threads(1)
def use():
    maps = [torch.ones(4 << 20) for _ in range(20)]  # 16 MiB each
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20
use()
start = resident()
with freed_memory_kept(when=True):
    use()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    use()
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    print(taken, 20 * (16 << 20) // resource.getpagesize(), resident() - start)
print(resident() - start)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_freed_memory_is_kept_for_a_while():
    command = [sys.executable, "-c", FREED_AND_TAKEN_AGAIN]
    line = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    page_faults, pages, held, afterwards = map(float, line.split())
    assert page_faults < pages / 4  # nearly all pages are new without
    assert held > 200
    assert afterwards < 50
