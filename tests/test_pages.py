"""Weights in huge pages: the same tensors, storages of their own, one behind another."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from costmodel.kernels import Weights
from costmodel.kernels.pages import place, place_buffers

MIB = 1 << 20


def test_placed_tensors_are_equal_and_follow_each_other() -> None:
    given = [
        torch.randn(300, 1000),
        torch.randint(0, 9, (7, 3), dtype=torch.int8),
        torch.empty(0),
        torch.randn(2 * MIB),
    ]
    placed = place(given)
    assert all(torch.equal(a, b) and a.dtype == b.dtype and a.shape == b.shape for a, b in zip(given, placed))
    first, small, _, last = placed
    assert first.data_ptr() % (2 * MIB) == 0
    assert 0 <= small.data_ptr() - (first.data_ptr() + first.nbytes) < 64
    assert last.data_ptr() % 64 == 0
    assert len({t.untyped_storage()._cdata for t in placed}) == len(placed)
    last.fill_(1.0)
    assert torch.equal(first, given[0])


def test_small_or_abstract_tensors_stay_where_they_are() -> None:
    small = [torch.ones(10)]
    assert place(small)[0] is small[0]
    meta = [torch.empty(2 * MIB, device="meta")]
    assert place(meta)[0] is meta[0]
    with FakeTensorMode():
        fake = [torch.empty(2 * MIB)]
        assert place(fake)[0] is fake[0]


def test_a_module_keeps_its_names_and_what_it_saves() -> None:
    module = nn.Sequential(nn.BatchNorm1d(300_000), nn.BatchNorm1d(10))
    module[1].register_buffer("derived", torch.randn(5), persistent=False)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    old = module[0].running_mean
    place_buffers(module)
    assert module[0].running_mean is not old
    assert module.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    twin = copy.deepcopy(module)
    twin[0].running_mean.fill_(3.0)
    assert torch.equal(module[0].running_mean, before["0.running_mean"])


def test_addresses_are_of_the_tensors_and_not_copied() -> None:
    weights = Weights([torch.ones(3), torch.ones(4)])
    assert weights.addresses == tuple(t.data_ptr() for t in weights)
    twin = copy.deepcopy(weights)
    assert isinstance(twin, Weights)
    assert twin.addresses == tuple(t.data_ptr() for t in twin)
    assert set(twin.addresses).isdisjoint(weights.addresses)
