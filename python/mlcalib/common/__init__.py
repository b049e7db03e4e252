"""What every part of the package uses, and what knows none of them."""
