"""A pass over a model in memory with a quantizer of the test's own."""

from mlcalib.common.stopwatch import Stopwatch
from mlcalib.formats import formats
from mlcalib.quantization.block_pass import run_pass
from mlcalib.quantization.open_source import live_source
from mlcalib.quantization.prefixes import mixture_of
from mlcalib.quantization.quantization_job import QuantizationJob
from mlcalib.quantization.sink import MemorySink
from mlcalib.quantization.variant import Variant


def quantize_blocks(model, quantizer, calibration, *, propagate, exceptions=None):
    """Return the sink: its ``linears``, and its ``model``, which is not the one given."""
    source = live_source(model)
    sink = MemorySink(source.model, source.adapter, formats.get("dense")())
    job = QuantizationJob(Variant(quantizer, exceptions or {}, mixture_of(calibration)), sink)
    run_pass(
        source, [job], calibration, propagate=propagate, stopwatch=Stopwatch(), description=None
    )
    return sink
