"""Which sequences of a text each rank takes through the blocks."""

from collections.abc import Mapping

from mlcalib.statistics.pairwise import leaf_sequences


def dealt(sequences: Mapping[str, int], seq_len: int, rank: int, size: int) -> dict[str, range]:
    """Return language → the sequences of a rank: some of every text, and as many as others have.

    They follow each other, and are whole leaves of the text's sums, so that the rank can add them
    up. Ranks come in turn for what cannot be divided.

    Args:
        sequences: language → sequences of its text.
        seq_len: tokens of a sequence, all of which are run.
        rank: which of them.
        size: number of ranks.
    """
    of_leaf = leaf_sequences(seq_len)
    found: dict[str, range] = {}
    turn = 0
    for language, count in sequences.items():
        each, more = divmod(-(-count // of_leaf), size)
        leaves = [each + ((other - turn) % size < more) for other in range(size)]
        turn += more
        first = sum(leaves[:rank]) * of_leaf
        found[language] = range(min(first, count), min(first + leaves[rank] * of_leaf, count))
    return found
