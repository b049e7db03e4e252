"""Grids as a format holds them: whichever dtype their scales were rounded to, if that is exact."""

from collections.abc import Sequence

import torch

from mlcalib._core import Grid
from mlcalib.formats import Format, held_scale

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def held_dtype(name: str, grid: Grid, form: Format, model_dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which a format holds the scales of a grid.

    Args:
        name: of the linear, for the message.
        grid: its scales may have been rounded to another dtype.
        form: the format.
        model_dtype: of the model in the checkpoint.

    Raises:
        ValueError: the scales are not exact in any dtype that the format has for such a model.
    """
    usual = form.scale_dtype(model_dtype)
    able = [usual, torch.float16] if form.half_scales else [usual]
    for dtype in able:
        if form.codes is None or held_scale(grid, dtype) is not None:
            return dtype
    made = grid.spec.scale_dtype
    remedy = "no dtype changes that: give another format, such as compressed-tensors"
    if made in _FLOATS and form.scale_dtype(made) == made:
        wanted = str(made).removeprefix("torch.")
        remedy = f"convert with another dtype (--dtype {wanted})"
    raise ValueError(
        f"{name}: its {made} scales are not exact in {usual}, in which {type(form).__name__} "
        f"holds those of a model in {model_dtype}; {remedy}, or quantize for it (format=)"
    )


def common_dtype(forms: Sequence[Format], model_dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to which scales are rounded so that several formats hold them exactly.

    It is the one with the fewest digits, which all others have too. Only a float16 has fewer
    exponents: scales beyond them are refused when they are saved.

    Raises:
        ValueError: one format quantizes scales themselves, and another does not hold these.
    """
    dtypes = [form.scale_dtype(model_dtype) for form in forms]
    if torch.uint8 in dtypes:
        for form, dtype in zip(forms, dtypes, strict=True):
            if form.codes is not None and dtype != torch.uint8:
                raise ValueError(
                    f"{type(form).__name__} holds scales in {dtype}, but another of the formats "
                    "quantizes scales themselves (double quantization); quantize for each by itself"
                )
        return torch.uint8
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
