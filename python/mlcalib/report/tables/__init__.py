"""Tables of rows: perplexity, tasks, fidelity."""
