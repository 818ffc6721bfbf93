"""Dtypes as data: torch's own by name, sizes and kinds, bits as numbers."""

import pickle

import pytest
import torch

from polyfuse.dtypes import DTYPES, as_elements, as_tensor, doubles, dtype_of, item
from polyfuse.errors import PolyfuseError

KNOWN = [dtype for dtype in DTYPES.values() if hasattr(torch, dtype.name)]
every = pytest.mark.parametrize("dtype", KNOWN, ids=str)


@every
def test_what_is_said_of_a_dtype_is_what_torch_says(dtype):
    own = dtype.torch
    assert (str(dtype), dtype.itemsize) == (str(own), own.itemsize)
    assert dtype.is_floating_point == own.is_floating_point
    assert dtype.is_complex == own.is_complex
    assert dtype == own == dtype_of(own)
    assert dtype_of(own) is dtype
    assert pickle.loads(pickle.dumps(dtype)) == dtype
    assert dtype != DTYPES["int64" if dtype.name != "int64" else "int32"]


@every
def test_bits_go_to_torch_and_back(dtype):
    raw = torch.arange(4 * dtype.itemsize, dtype=torch.uint8) % 2
    elements = as_elements(raw.view(dtype.torch))
    assert len(elements) == 4
    back = as_tensor(elements, dtype)
    assert back.dtype == dtype.torch
    assert torch.equal(back.view(torch.uint8), raw)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_numbers_are_those_of_torch(dtype):
    values = torch.tensor([1.5, -0.25, 3e-8, torch.inf, -0.0]).to(dtype)
    elements = as_elements(values)
    assert doubles(elements, dtype_of(dtype)).tolist() == values.double().tolist()
    assert item(elements, dtype_of(dtype)) == values[0].item()


@pytest.mark.parametrize(("dtype", "value"), [("bool", True), ("int8", -3), ("uint64", 2**63)])
def test_other_numbers_are_pythons(dtype, value):
    tensor = torch.tensor([value], dtype=getattr(torch, dtype))
    assert item(as_elements(tensor), DTYPES[dtype]) == value


def test_an_unknown_name_is_refused():
    with pytest.raises(PolyfuseError, match="unknown dtype 'bfloat61'; did you mean 'bfloat16'"):
        dtype_of("bfloat61")


def test_a_dtype_that_no_format_takes_is_described():
    assert str(dtype_of(torch.qint8)) == "torch.qint8"
    assert dtype_of(torch.qint8) == dtype_of(torch.qint8)
