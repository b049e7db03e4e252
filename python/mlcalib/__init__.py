"""Quantize multilingual language models with language-diverse calibration.

``MODEL`` is a folder, a GGUF file or a name on the Hugging Face hub; ``sample`` is a small text for
demonstration, and ``files:TEXT`` is text of your own, in ``TEXT/LANGUAGE/{calib,eval}.txt``.

>>> import mlcalib
>>> calibration = mlcalib.calibration("MODEL", "en,sw,zh", "sample", tokens=3072)
>>> quantized = mlcalib.quantize("MODEL", calibration, method=mlcalib.GPTQ(bits=4, group_size=64))
>>> results = mlcalib.evaluate(["MODEL", quantized], "en,sw,zh", "sample", tokens=512)
>>> results.plot("bits_per_byte")
>>> quantized.save("OUT")
>>> model = mlcalib.load("OUT")
"""

from typing import TYPE_CHECKING, Any

import torch

from mlcalib._build import TORCH_VERSION


def _check_torch(built: str, found: str) -> None:
    """Refuse a torch whose libraries are not those that the core was linked with.

    libtorch has no ABI promise from one release to the next. What follows the ``+`` (cpu, cu130)
    names the same release built for another device, and is free to differ.
    """
    if built.partition("+")[0] != found.partition("+")[0]:
        raise ImportError(
            f"mlcalib was built with torch {built}, but torch {found} is installed. Build it again "
            "with this torch; in mlcalib's folder:\n"
            "    pip install scikit-build-core cmake ninja\n"
            "    pip install --no-build-isolation --force-reinstall --no-deps .\n"
            "or install the torch that it was built with:\n"
            f"    pip install torch=={built.partition('+')[0]}"
        )


_check_torch(TORCH_VERSION, torch.__version__)

from mlcalib._core import Grid, GridSpec, QuantizedLinear, build_info  # noqa: E402 - after the check
from mlcalib.calibration_sets import CalibrationSet  # noqa: E402
from mlcalib.calibration_sets.calibrate import calibration  # noqa: E402
from mlcalib.checkpoints.check import check  # noqa: E402
from mlcalib.checkpoints.convert import convert  # noqa: E402
from mlcalib.checkpoints.imatrix_file import ImportanceFile  # noqa: E402
from mlcalib.checkpoints.packed import load, register_packed  # noqa: E402
from mlcalib.evaluation import evaluate  # noqa: E402
from mlcalib.evaluation.registration import register as _register_model  # noqa: E402
from mlcalib.formats import Format  # noqa: E402
from mlcalib.languages import LanguageSet  # noqa: E402
from mlcalib.models import Adapter  # noqa: E402
from mlcalib.models.llm_int8 import LLMInt8  # noqa: E402
from mlcalib.models.loading import find_smollm2  # noqa: E402
from mlcalib.quantization.imatrix import ImportanceMatrix, imatrix  # noqa: E402
from mlcalib.quantization.quantize import quantize  # noqa: E402
from mlcalib.quantization.quantize_checkpoint import quantize_checkpoint  # noqa: E402
from mlcalib.quantization.quantized_model import QuantizedModel  # noqa: E402
from mlcalib.quantization.tune import tune, tune_checkpoint  # noqa: E402
from mlcalib.quantizers import Quantizer  # noqa: E402
from mlcalib.quantizers.awq import AWQ  # noqa: E402
from mlcalib.quantizers.base import QuantizerOptions  # noqa: E402
from mlcalib.quantizers.gptq import GPTQ  # noqa: E402
from mlcalib.quantizers.rtn import RTN  # noqa: E402
from mlcalib.quantizers.smoothquant import SmoothQuant  # noqa: E402
from mlcalib.studies import Study, study  # noqa: E402

if TYPE_CHECKING:
    from mlcalib.checkpoints.packed.config import PackedConfig

__version__ = build_info()["version"]
_register_model()

__all__ = [
    "AWQ",
    "GPTQ",
    "RTN",
    "Adapter",
    "CalibrationSet",
    "Format",
    "Grid",
    "GridSpec",
    "ImportanceFile",
    "ImportanceMatrix",
    "LLMInt8",
    "LanguageSet",
    "PackedConfig",
    "QuantizedLinear",
    "QuantizedModel",
    "Quantizer",
    "QuantizerOptions",
    "SmoothQuant",
    "Study",
    "__version__",
    "calibration",
    "check",
    "convert",
    "evaluate",
    "find_smollm2",
    "imatrix",
    "load",
    "quantize",
    "quantize_checkpoint",
    "register_packed",
    "study",
    "tune",
    "tune_checkpoint",
]


def __getattr__(name: str) -> Any:
    """Import ``PackedConfig``, a class of transformers', when it is asked for."""
    if name == "PackedConfig":
        from mlcalib.checkpoints.packed.config import PackedConfig

        return PackedConfig
    raise AttributeError(f"module 'mlcalib' has no attribute '{name}'")
