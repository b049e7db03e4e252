"""DataFrames and plots of losses and ranges, for notebooks."""
