"""Families of models: one file each, with one ``Adapter`` literal called ``adapter``."""
