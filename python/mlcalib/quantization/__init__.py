"""A model in, block by block, a quantized model out: in memory or from file to file."""
