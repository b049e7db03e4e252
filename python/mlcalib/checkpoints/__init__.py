"""Folders that others load: reading, writing, converting and checking them."""

from mlcalib.checkpoints._shards import save_tensors
from mlcalib.checkpoints.read import Checkpoint, FileCheckpoint, load_quantized, open_checkpoint
from mlcalib.checkpoints.write import (
    quantization_section,
    save_checkpoint,
    write_checkpoint,
    write_file_checkpoint,
)

__all__ = [
    "Checkpoint",
    "FileCheckpoint",
    "load_quantized",
    "open_checkpoint",
    "quantization_section",
    "save_checkpoint",
    "save_tensors",
    "write_checkpoint",
    "write_file_checkpoint",
]
