"""mlcalib inside other tools."""
