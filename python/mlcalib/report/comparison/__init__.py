"""Models compared: item by item, relative to float, by groups of languages."""
