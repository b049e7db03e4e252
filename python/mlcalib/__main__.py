"""``python -m mlcalib`` is the command ``mlcalib``, as torchrun starts it."""

from mlcalib.cli import main

if __name__ == "__main__":
    main()
