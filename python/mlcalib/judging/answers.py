"""Answers of a model to prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mlcalib.checkpoints.packed import load_to_run
from mlcalib.checkpoints.record import origin
from mlcalib.common.errors import named
from mlcalib.common.progress import progress_bar
from mlcalib.judging.chat import as_chat
from mlcalib.judging.journal import Journal
from mlcalib.judging.texts import fingerprint
from mlcalib.models.device import choose_device, device_name, short_of_memory
from mlcalib.models.identity import identity
from mlcalib.models.loading import load_tokenizer
from mlcalib.results.generations import Generation, Prompt, Source, generation_row

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class AnswerLine:
    """What is needed of a line of the journal."""

    language: str
    id: str
    output: str


def generate(
    model: str,
    prompts: Sequence[Prompt],
    out: str | Path,
    *,
    max_tokens: int = 256,
    batch_size: int = 1,
    dtype: str = "auto",
    device: str = "auto",
    progress: bool = True,
) -> list[Generation]:
    """Let a model answer prompts, greedily, and write the answers as JSONL.

    A prompt is a user's message where the tokenizer has a chat template, and plain text otherwise.
    Answers are on disk batch by batch; those that are there are not generated again.

    Args:
        model: a folder or a hub name.
        prompts: what to answer.
        out: the file: ``id``, ``language``, ``prompt``, ``output``, ``finished`` (false where
            ``max_tokens`` cut the answer off), ``model``, ``method`` and ``calibration``.
        max_tokens: longest answer.
        batch_size: prompts at a time, of about the same length. Other batch sizes can give other
            bits, and so now and then another word: compare models with the same one.
        dtype: of the weights.
        device: where the model runs: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` (a GPU, where there
            is one and mlcalib was built for it).
        progress: show a bar.

    Returns:
        The answers, in the order of the prompts.

    Raises:
        FileNotFoundError: no such model.
        ValueError: no prompts, a prompt that is too long, or ``out`` is of other prompts, another
            model or device, or other options.
        torch.OutOfMemoryError: a batch does not fit into the device's memory.
    """
    if not prompts:
        raise ValueError("There is nothing to generate: no prompt was given.")
    for name, value in {"max_tokens": max_tokens, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}, expected 1 or more.")
    place = choose_device(device)
    settings = [identity(model), f"{max_tokens=}", f"{batch_size=}", f"{dtype=}"]
    if place.type != "cpu":  # other bits, and so now and then another word
        settings.append(f"device={device_name(place)!r}")
    with Journal(out, fingerprint(prompts, *settings), "generations", AnswerLine) as journal:
        there = {(row.language, row.id) for row in journal.rows}
        if not all((each.language, each.id) in there for each in prompts):
            _complete(journal, model, prompts, max_tokens, batch_size, dtype, place, progress)
        outputs = {(row.language, row.id): row.output for row in journal.rows}
    return [
        Generation(each.id, each.language, each.prompt, outputs[each.language, each.id])
        for each in prompts
    ]


def _complete(
    journal: Journal[AnswerLine],
    model: str,
    prompts: Sequence[Prompt],
    max_tokens: int,
    batch_size: int,
    dtype: str,
    device: torch.device,
    progress: bool,
) -> None:
    """Generate what the journal does not have, in the batches that an unbroken run would make."""
    live, tokenizer = load_to_run(model, dtype, device), load_tokenizer(model)
    questions = {(each.language, each.id): as_chat(tokenizer, each.prompt) for each in prompts}
    _check_lengths(live, questions, max_tokens)
    there = {(row.language, row.id) for row in journal.rows}
    source = Source(model, *origin(model))
    # Long ones first: what does not fit into memory fails at once.
    order = sorted(prompts, key=lambda each: -len(questions[each.language, each.id]))
    starts = range(0, len(order), batch_size)
    for start in progress_bar(starts, desc="generating", disable=not progress):
        batch = order[start : start + batch_size]
        if all((each.language, each.id) in there for each in batch):
            continue
        tokens = [questions[each.language, each.id] for each in batch]
        with short_of_memory(
            device, f"{len(batch)} answers at a time", "a smaller batch_size (--batch-size)"
        ):
            answers = _answer(live, tokenizer, tokens, max_tokens)
        for each, (output, finished) in zip(batch, answers, strict=True):
            if (each.language, each.id) not in there:
                made = Generation(each.id, each.language, each.prompt, output)
                journal.append(generation_row(made, source, finished=finished))


@torch.inference_mode()
def _answer(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    questions: Sequence[list[int]],
    max_tokens: int,
) -> list[tuple[str, bool]]:
    """Return for each question the answer, and whether it ended by itself."""
    longest = max(map(len, questions))
    ends = _ends(model, tokenizer)
    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    ids = torch.tensor([[filler] * (longest - len(each)) + each for each in questions])
    mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in questions])
    made = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=sorted(ends) or None,
        pad_token_id=filler,
        # Some models' files ask for sampling, which would be warned about.
        temperature=None,
        top_p=None,
        top_k=None,
    )
    answers = []
    for row in made[:, longest:].tolist():
        stop = next((at for at, token in enumerate(row) if token in ends), None)
        text = tokenizer.decode(row[:stop], skip_special_tokens=True)
        answers.append((text.strip(), stop is not None))
    return answers


def _ends(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Return the tokens that end an answer: a chat model's turn end is not always its eos."""
    given = model.generation_config.eos_token_id
    ends = given if isinstance(given, list) else [given]
    return {end for end in (*ends, tokenizer.eos_token_id) if end is not None}


def _check_lengths(
    model: "PreTrainedModel", questions: dict[tuple[str, str], list[int]], max_tokens: int
) -> None:
    most = getattr(model.config, "max_position_embeddings", None)
    for (language, name), tokens in questions.items():
        with named(f"prompt {name} in '{language}'"):
            if not tokens:
                raise ValueError("the tokenizer makes no token of it.")
            if most is not None and len(tokens) + max_tokens > most:
                raise ValueError(
                    f"it has {len(tokens):,} tokens, and with {max_tokens:,} of an answer that is "
                    f"more than the {most:,} of the model's context; ask for shorter answers "
                    "(--max-tokens), or leave the prompt out."
                )
