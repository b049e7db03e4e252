"""Which rows of a linear that makes several tensors may be those that another linear reads."""

from collections.abc import Iterator

from torch import nn

from mlcalib.models.rows import Rows


def rows_read(made: int, read: int, module: nn.Module) -> list[Rows]:
    """Return candidates, the likeliest first: each is to be proved.

    Gate and up stand one below the other or take turns. Of q, k and v, and of what low-rank
    attention makes for each head, the values stand last: of all rows, or of those of each head.

    Args:
        made: outputs of the linear.
        read: inputs of the linear that reads some of them.
        module: that the first is in; its settings have the size of a head.
    """
    found: list[Rows] = []
    if not 0 < read < made:
        return found
    if made == 2 * read:
        found += [Rows(read, read, read, 1), Rows(0, read, read, 1)]
        found += [Rows(1, 1, 2, read), Rows(0, 1, 2, read)]
    for head in _head_sizes(read, module):
        heads = read // head
        shared = (made - read) // (2 * head)  # heads of k and of v
        for count in dict.fromkeys((shared, heads)):
            if 0 < count <= heads and heads % count == 0:
                last = Rows(made - count * head, head, head, count)
                found.append(last if count < heads else Rows(made - read, read, read, 1))
                if made % count == 0:
                    found.append(Rows(made // count - head, head, made // count, count))
    return list(dict.fromkeys(found))


def _head_sizes(read: int, module: nn.Module) -> Iterator[int]:
    for name, value in vars(module).items():
        is_size = type(value) is int and not name.startswith("num")
        if is_size and 1 < value <= read and read % value == 0:
            yield value
