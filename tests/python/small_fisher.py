"""What the loss feels of the blocks of a small model."""

from mlcalib.common.stopwatch import Stopwatch
from mlcalib.quantization.fisher import Fisher


def felt_of(source, calibration, asked, **options):
    """Block → what the loss feels of it, for all that ask."""
    source = source.ready()
    fisher = Fisher(source, calibration, asked, source.places("cpu"), **options)
    fisher.run(Stopwatch(), None)
    found = {}
    for name, _ in source.adapter.named_blocks(source.model):
        with source.block(name) as block:
            found[name] = fisher.gather(name, block)
    return found
