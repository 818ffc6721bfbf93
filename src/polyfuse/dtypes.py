"""The kinds of numbers in checkpoints, as data: torch is not imported to know them.

What is in a file, whether files match, and where everything goes in an output is decided with
these; torch's own dtypes come in where tensors do.
"""

from __future__ import annotations

import sys
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import CheckpointError, PolyfuseError, did_you_mean, printable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Elements = NDArray[Any]  # flat; their bits, as unsigned numbers of the same size


class DType:
    """A dtype of torch, by name; it is equal to torch's own.

    Attributes:
        name: without `torch.`.
        itemsize: bytes of an element.

    Example:
        >>> import torch
        >>> DTYPES["bfloat16"] == torch.bfloat16, DTYPES["bfloat16"].torch
        (True, torch.bfloat16)
    """

    def __init__(self, name: str, itemsize: int) -> None:
        """Describe a dtype; `DTYPES` has all of them."""
        self.name, self.itemsize = name, itemsize
        self.is_complex = name.startswith("complex")
        self.is_floating_point = name.startswith(("float", "bfloat"))

    @cached_property
    def torch(self) -> torch.dtype:
        """Torch's own.

        Raises:
            CheckpointError: this version of torch has none of this name.
        """
        import torch

        dtype = getattr(torch, self.name, None)
        if dtype is None:
            raise CheckpointError(
                f"this torch, {torch.__version__}, has no {self.name}; type: pip install -U torch"
            )
        return dtype  # type: ignore[no-any-return]  # a module's attribute

    @cached_property
    def raw(self) -> np.dtype[Any]:
        """NumPy's dtype that holds the bits of one element."""
        return np.dtype("complex128" if self.itemsize == 16 else f"uint{8 * self.itemsize}")

    def empty(self, count: int) -> Elements:
        """Return room for so many elements."""
        return np.empty(count, self.raw)

    def __eq__(self, other: object) -> bool:
        """Tell whether it is the same dtype, be it ours or torch's."""
        return self is other or str(other) == str(self)

    def __hash__(self) -> int:
        """Return a hash of its name."""
        return hash(self.name)

    def __repr__(self) -> str:
        """Return what torch's own prints."""
        return f"torch.{self.name}"


_SIZES = {
    1: (
        *("bool", "uint8", "int8", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2"),
        *("float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
    ),
    2: ("float16", "bfloat16", "int16", "uint16"),
    4: ("float32", "int32", "uint32", "complex32"),
    8: ("float64", "int64", "uint64", "complex64"),
    16: ("complex128",),
}
DTYPES = {name: DType(name, size) for size, names in _SIZES.items() for name in names}


def dtype_of(dtype: DType | torch.dtype | str) -> DType:
    """Return the description of a dtype: torch's own, or a name.

    One of torch's that is not in `DTYPES`, as of quantised tensors, is described as it is; no
    format takes it.

    Raises:
        PolyfuseError: an unknown name.

    Example:
        >>> dtype_of("float16").itemsize
        2
    """
    if isinstance(dtype, DType):
        return dtype
    name = str(dtype).removeprefix("torch.")
    if name in DTYPES:
        return DTYPES[name]
    if isinstance(dtype, str):
        near, known = did_you_mean(name, DTYPES), ", ".join(DTYPES)
        raise PolyfuseError(f"unknown dtype '{printable(name)}'{near}; known: {known}")
    return DType(name, dtype.itemsize)


def bytes_of(elements: Elements) -> memoryview:
    r"""Return the bytes of a flat, contiguous array, to be read or written in place.

    Example:
        >>> bytes(bytes_of(np.array([1, 2], np.uint16)))
        b'\x01\x00\x02\x00'
    """
    return memoryview(elements.view(np.uint8))  # type: ignore[arg-type]  # NumPy's stub, on Python 3.11


def as_tensor(elements: Elements, dtype: DType) -> Tensor:
    """Return elements as a flat tensor that shares their memory.

    Example:
        >>> as_tensor(np.array([0x3F80], np.uint16), DTYPES["bfloat16"])
        tensor([1.], dtype=torch.bfloat16)
    """
    import torch

    return torch.from_numpy(elements.view(np.uint8)).view(dtype.torch)


def as_elements(tensor: Tensor) -> Elements:
    """Return the bits of a flat, contiguous CPU tensor, which share its memory.

    Example:
        >>> import torch
        >>> as_elements(torch.ones(1, dtype=torch.float16))
        array([15360], dtype=uint16)
    """
    import torch

    plain = tensor.detach().view(torch.uint8).numpy()
    return plain.view(dtype_of(tensor.dtype).raw)


def doubles(elements: Elements, dtype: DType) -> NDArray[np.float64]:
    """Return floating elements as fp64; torch is imported only for dtypes that NumPy lacks.

    Example:
        >>> doubles(np.array([0x3F80], np.uint16), DTYPES["bfloat16"])
        array([1.])
    """
    if dtype.name == "bfloat16":
        return (elements.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if hasattr(np, dtype.name):
        return elements.view(dtype.name).astype(np.float64)
    return as_tensor(elements, dtype).double().numpy()


def item(elements: Elements, dtype: DType) -> float | int | bool:
    """Return the first element as a number of Python.

    Example:
        >>> item(np.array([0x3F80], np.uint16), DTYPES["bfloat16"])
        1.0
    """
    if dtype.is_floating_point:
        return float(doubles(elements[:1], dtype)[0])
    if hasattr(np, dtype.name) or dtype.name == "bool":
        return elements[:1].view(dtype.name)[0].item()  # type: ignore[no-any-return]
    return as_tensor(elements[:1], dtype).item()


def is_tensor(value: object) -> bool:
    """Tell whether something is a tensor of torch, without importing it.

    Example:
        >>> is_tensor(3.0)
        False
    """
    return hasattr(type(value), "untyped_storage")


def torch_is_loaded() -> bool:
    """Tell whether torch was imported already.

    Example:
        >>> import torch
        >>> torch_is_loaded()
        True
    """
    return "torch" in sys.modules
