"""How much memory a call takes."""

import tracemalloc


def peak(call):
    """Return the most bytes that a call takes of Python and numpy, and what its ValueError says."""
    tracemalloc.start()
    try:
        call()
        said = ""
    except ValueError as error:
        said = str(error)
    finally:
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return taken, said
