"""What a pass takes in a device's memory, at its largest block."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mlcalib.calibration_sets import CalibrationSet
from mlcalib.quantization.dealing import dealt
from mlcalib.quantization.input_sizes import ExpertSums, input_sizes
from mlcalib.quantization.source import Source
from mlcalib.statistics import compares, statistic_bytes
from mlcalib.statistics.pairwise import leaf_sequences, nodes_of

_FLOAT = 4


@dataclass(frozen=True)
class Needs:
    """Bytes that a pass takes on the device, at its largest block.

    Attributes:
        model: weights that are still to be loaded, and stay.
        block: weights of a block that are brought to the device.
        forward: activations of one sequence in the block, an estimate.
        solve: a job's own weights and codes, its mixture, and the solver's float32 copies of the
            linears of one input, its Gram and factor.
        turns: what the other jobs keep too where languages take turns: a mixture, and when they
            have solved new weights and codes.
        hidden: hidden states of all sequences.
        other: statistics of text that is only measured, and its hidden states.
        fisher: statistics of the loss: of one text and of the mixture of each job that asks for
            them, with sums of parts of the text; on the CPU also what blocks read and the gradients
            there.
        fisher_texts: those of each text by itself.
        statistics: language → statistics of the inputs of its text.
        inputs: input → its share in the statistics of one text.
        sums: of parts of the text that is running, before they are added to each other.
        codes: codes of a block, as ranks send them.
        rows: what experts read of a language's text, where they are summed one by one.
        everywhere: of the statistics of all texts those that every rank gets.
        sent: what a rank sends of what experts read, of all text, and of their mixtures.
        shared: statistics of weights that blocks share, at the first of their places, from before
            the first block on; where hidden states lie on disk, also those of that first run.
    """

    model: int
    block: int
    forward: int
    solve: int
    turns: int
    hidden: int
    other: int
    fisher: int
    fisher_texts: int
    statistics: Mapping[str, int]
    inputs: Mapping[str, int]
    sums: int = 0
    codes: int = 0
    rows: int = 0
    everywhere: int = 0
    sent: int = 0
    shared: int = 0


@dataclass(frozen=True)
class OtherText:
    """Text that is only measured.

    Attributes:
        languages: how many.
        tokens: of all of them, in whole sequences.
        kinds: its statistics.
    """

    languages: int
    tokens: int
    kinds: Sequence[str]


@dataclass(frozen=True)
class BackwardText:
    """Calibration text that runs backward.

    Attributes:
        tokens: of each job that asks for it.
        texts: how many texts of languages they are of.
        by_text: whether what the loss feels of each text by itself is solved with.
    """

    tokens: Sequence[int] = ()
    texts: int = 0
    by_text: bool = False


NOTHING_BACKWARD = BackwardText()


def needs_of(  # noqa: PLR0913 - what decides it
    source: Source,
    device: torch.device,
    text: CalibrationSet | None,
    prefixes: Mapping[str, int],
    kinds: Sequence[str],
    solving: int,
    fisher: BackwardText,
    other: OtherText | None,
    *,
    how: ExpertSums,
    on_disk: bool,
    ranks: int,
) -> Needs:
    """Work out what a pass takes; nothing runs. For arguments see ``plan_memory``."""
    adapter, size = source.adapter, source.dtype.itemsize
    _, block = max(adapter.named_blocks(source.model), key=lambda each: _weights(each[1]))
    linears = adapter.linears_of(block)
    inputs = {
        key: [adapter.linear(block, member).weight for member in members]
        for key, members in linears.items()
    }
    of_input = {
        key: sum(statistic_bytes(kind, weights[0].shape[1], device) for kind in kinds)
        for key, weights in inputs.items()
    }
    scratch = [
        3 * sum(weight.numel() for weight in weights) + 3 * weights[0].shape[1] ** 2
        for weights in inputs.values()
    ]
    weights = _weights(block)
    sizes_of = input_sizes(source, block, kinds, device, of_input, ranks if how.apart else 1)
    mixed = sizes_of.of_mixture(how)
    solved = weights * (size + 1)
    solve = solved + mixed + max(scratch) * _FLOAT if solving else 0
    width = source.model.get_input_embeddings().weight.shape[1]
    token = 0 if on_disk else width * size
    beside = 0
    if other is not None:
        each = sum(
            statistic_bytes(kind, found[0].shape[1], device)
            for found in inputs.values()
            for kind in other.kinds
        )
        beside = other.languages * each + other.tokens * token // ranks
    felt = sum(
        statistic_bytes("saliency_gram", weights[0].shape[1], device)
        + sum(statistic_bytes("output_gram", weight.shape[0], device) for weight in weights)
        for weights in inputs.values()
    )
    blocks = len(adapter.named_blocks(source.model))
    backward = max(fisher.tokens, default=0)
    if text is not None:
        backward = backward * _tokens_of_rank(text, ranks) // tokens_of(text)
    kept = 2 * backward * width * size * blocks if device.type == "cpu" else 0
    parts = 1 + (0 if text is None else _nodes(text, ranks))
    # Of experts, a token has the outputs of a few.
    wide = sum(
        weight.shape[0] * (sizes_of.chosen if adapter.expert_of(linears[key][0]) else 1)
        for key, found in inputs.items()
        for weight in found
    )
    there = next(block.parameters()).device
    models = 2 if compares(kinds) else 1
    last = list(inputs.values())[-1]
    writer = 2 * last[0].numel() * _FLOAT if models == 2 and len(last) == 1 else 0  # W and W⁺
    each = sizes_of.of_text(how)
    everywhere = sizes_of.others + (0 if how.apart else sizes_of.experts)
    sent = 0
    if text is not None and how.apart:
        sent = _tokens_of_rank(text, ranks) * sizes_of.row
        sent += sizes_of.experts if how.looks_at_all else 0
    return Needs(
        model=source.resident if device.type == "cpu" and there.type == "meta" else 0,
        block=0 if there == device else weights * size,
        forward=0 if text is None else int(2 * text.seq_len * (wide + 4 * width) * size) + writer,
        solve=solve,
        turns=max(solving - 1, 0) * max(mixed, solved + weights * size),
        hidden=0 if text is None else _tokens_of_rank(text, ranks) * token * models,
        other=beside,
        fisher=(len(fisher.tokens) + parts) * felt + kept if fisher.tokens else 0,
        fisher_texts=fisher.texts * felt,
        statistics={code: count * each for code, count in prefixes.items()},
        inputs=of_input,
        sums=0
        if text is None
        else sizes_of.of_parts(how, _nodes(text, ranks), 2 + _nodes(text, 1)),
        codes=weights if solving else 0,
        rows=_longest_of_rank(text, ranks) * sizes_of.row if text and how.apart else 0,
        everywhere=sum(prefixes.values()) * everywhere,
        sent=sent,
        shared=0
        if text is None
        else _shared(source, device, kinds, sum(prefixes.values()))
        + (tokens_of(text) * width * size if on_disk and adapter.places else 0),
    )


def _shared(source: Source, device: torch.device, kinds: Sequence[str], texts: int) -> int:
    """Return the bytes of the statistics of all texts that are kept of shared weights."""
    adapter, found = source.adapter, 0
    firsts = set(adapter.places.values())
    for name, block in adapter.named_blocks(source.model) if firsts else []:
        for members in adapter.linears_of(block).values():
            if firsts & {f"{name}.{member}" for member in members}:
                channels = adapter.linear(block, members[0]).weight.shape[1]
                found += sum(statistic_bytes(kind, channels, device) for kind in kinds)
    return found * texts


def _weights(block: nn.Module) -> int:
    return sum(each.numel() for each in block.parameters())


def tokens_of(text: CalibrationSet) -> int:
    """Return the tokens that run through the model: those of whole sequences."""
    return sum(each.numel() for each in text.ids.values())


def _tokens_of_rank(text: CalibrationSet, ranks: int) -> int:
    """Return the tokens of the rank that has most."""
    return max(sum(map(len, each.values())) for each in _shares(text, ranks)) * text.seq_len


def _longest_of_rank(text: CalibrationSet, ranks: int) -> int:
    """Return the most tokens that a rank has of one language."""
    shares = _shares(text, ranks)
    return max(len(part) for each in shares for part in each.values()) * text.seq_len


def _shares(text: CalibrationSet, ranks: int) -> list[dict[str, range]]:
    """Return the sequences of each rank."""
    counts = {code: len(ids) for code, ids in text.ids.items()}
    return [dealt(counts, text.seq_len, rank, ranks) for rank in range(ranks)]


def _nodes(text: CalibrationSet, ranks: int) -> int:
    """Return how many sums are held beside those that texts end with: parts of the text that runs.

    Over ranks also the parts of all texts, until they are put together, and one of another rank.
    """
    counts = {code: len(ids) for code, ids in text.ids.items()}
    of_leaf = leaf_sequences(text.seq_len)
    longest = -(-max(counts.values(), default=0) // of_leaf)
    running = max(longest, 1).bit_length() - 1
    if ranks == 1:
        return running
    parts = [
        sum(
            max(nodes_of(range(part.start // of_leaf, -(-part.stop // of_leaf))) - 1, 0)
            for part in share.values()
        )
        for share in _shares(text, ranks)
    ]
    return running + 1 + max(parts)
