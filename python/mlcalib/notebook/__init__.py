"""What objects show in a notebook, from plain values: HTML, DataFrames and plots."""
