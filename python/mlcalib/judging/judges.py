"""Judges: what says which of two answers is better."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from mlcalib.checkpoints.packed import load_to_run
from mlcalib.judging.chat import as_chat
from mlcalib.judging.texts import Pair
from mlcalib.languages import language
from mlcalib.models.device import choose_device, device_name
from mlcalib.models.identity import identity
from mlcalib.models.loading import check_source, load_tokenizer, model_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Letter = Literal["A", "B", "C"]
LETTERS: tuple[Letter, ...] = ("A", "B", "C")
"""The answer shown first is better; the one shown second; neither."""


@dataclass(frozen=True)
class Opinion:
    """What a judge says of two answers in the order that they were shown.

    Attributes:
        letter: None where the judge named none.
        evidence: what it rests on, for the record; JSON types.
    """

    letter: Letter | None
    evidence: dict[str, Any] = field(default_factory=dict)


class Judge(Protocol):
    """Says which of two answers is better."""

    identity: dict[str, Any]
    """What its opinions depend on: model, template, options; JSON types."""
    reads_both: bool
    """Whether it reads the answers together, so that their order can matter."""
    workers: int
    """How many questions may be asked at the same time."""

    def compare(self, pair: Pair) -> Opinion:
        """Compare ``pair.first``, which is shown first, with ``pair.second``."""
        ...


def read_template(path: str | Path | None = None) -> str:
    """Read a judge's prompt: text with ``{prompt}``, ``{first}``, ``{second}``, ``{language}``.

    Args:
        path: a file; None for mlcalib's own.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a template without prompt or answers.
    """
    if path is None:
        return files("mlcalib.judging").joinpath("judge_prompt.txt").read_text(encoding="utf-8")
    template = Path(path).read_text(encoding="utf-8")
    if missing := [name for name in ("prompt", "first", "second") if f"{{{name}}}" not in template]:
        raise ValueError(
            f"{path} has no {', '.join(f'{{{name}}}' for name in missing)}; a judge's prompt needs "
            "{prompt}, {first} and {second}, and may have {language}. It must ask for a reply of "
            "one letter: A (the first), B (the second) or C (neither)."
        )
    return template


def fill(template: str, pair: Pair) -> str:
    """Put a pair into a template; braces inside the texts stay what they are."""
    values = {
        "prompt": pair.prompt,
        "first": pair.first,
        "second": pair.second,
        "language": language(pair.language).name,
    }
    return re.sub(r"\{(prompt|first|second|language)\}", lambda found: values[found[1]], template)


class LanguageModelJudge:
    """A causal language model, which is asked by a template.

    Its opinion is the likeliest of the three replies ``A``, ``B`` and ``C``, by their likelihood
    after the question: nothing is sampled, and every pair gets an opinion.

    Args:
        source: a folder or a hub name; see ``load_to_run``.
        template: see ``read_template``.
        dtype: of the weights.
        device: where it runs: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` (a GPU, where there is one
            and mlcalib was built for it).
    """

    reads_both = True
    workers = 1

    def __init__(
        self, source: str, template: str, dtype: str = "auto", device: str = "auto"
    ) -> None:
        place = choose_device(device)
        self._model = load_to_run(source, dtype, place)
        self._tokenizer = load_tokenizer(source)
        self._template = template
        self.identity = {"kind": "likelihood", "model": identity(source), "template": template}
        self.identity |= _elsewhere(place)

    @torch.inference_mode()
    def compare(self, pair: Pair) -> Opinion:
        """See ``Judge.compare``."""
        chats = bool(self._tokenizer.chat_template)
        text = fill(self._template, pair)
        question = as_chat(self._tokenizer, text if chats else f"{text.rstrip()}\n\nReply:")
        _check_length(self._model, len(question) + 1, pair)
        replies = {letter: letter if chats else f" {letter}" for letter in LETTERS}
        found = self._likelihoods(question, replies)
        best = max(found, key=lambda letter: found[letter])
        return Opinion(best, {"log_likelihood": found})

    def _likelihoods(
        self, question: list[int], replies: Mapping[Letter, str]
    ) -> dict[Letter, float]:
        """Return ln p of the tokens of each reply after the question."""
        found: dict[Letter, float] = {}
        known: dict[tuple[int, ...], Tensor] = {}  # what was read of a reply → ln p of what follows
        for letter, reply in replies.items():
            tokens = self._tokenizer(reply, add_special_tokens=False).input_ids
            found[letter] = 0.0
            for at, token in enumerate(tokens):
                read = tuple(tokens[:at])
                if read not in known:  # mostly a single one: replies are one token, or differ last
                    ids = torch.tensor([[*question, *read]], device=self._model.device)
                    logits = self._model(input_ids=ids, use_cache=False).logits
                    known[read] = logits[0, -1].float().log_softmax(0)
                found[letter] += float(known[read][token])
        if not all(map(math.isfinite, found.values())):
            raise ValueError("the judge gives NaN or Inf; it is damaged, or its dtype overflows.")
        return found


class RewardModelJudge:
    """A reward model: a sequence classifier with one label, which scores one answer at a time.

    Args:
        source: a folder or a hub name.
        margin: rewards that differ by no more are a tie.
        dtype: of the weights.
        device: as for ``LanguageModelJudge``.

    Raises:
        ValueError: the model has more than one label, or a negative margin.
    """

    reads_both = False
    workers = 1

    def __init__(
        self, source: str, margin: float = 0.0, dtype: str = "auto", device: str = "auto"
    ) -> None:
        from transformers import AutoModelForSequenceClassification

        if margin < 0:
            raise ValueError(f"margin is {margin}, expected 0 or more.")
        place = choose_device(device)
        # With one label a missing head would be made anew, random, with a mere warning.
        model, report = AutoModelForSequenceClassification.from_pretrained(
            source, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
        if model.config.num_labels != 1 or report["missing_keys"]:
            wrong = (
                f"lacks weights ({', '.join(sorted(report['missing_keys']))})"
                if report["missing_keys"]
                else f"has {model.config.num_labels} labels"
            )
            raise ValueError(
                f"{source} {wrong}; a reward model is a sequence classifier with one label."
            )
        self._model = model.eval().to(place)
        self._tokenizer = load_tokenizer(source)
        self._margin = margin
        self.identity = {"kind": "reward", "model": identity(source), "margin": margin}
        self.identity |= _elsewhere(place)

    @torch.inference_mode()
    def compare(self, pair: Pair) -> Opinion:
        """See ``Judge.compare``."""
        rewards = [self._reward(pair, answer) for answer in (pair.first, pair.second)]
        rise = rewards[1] - rewards[0]
        letter: Letter = "C" if abs(rise) <= self._margin else "B" if rise > 0 else "A"
        return Opinion(letter, {"rewards": rewards})

    def _reward(self, pair: Pair, answer: str) -> float:
        ids = as_chat(self._tokenizer, pair.prompt, answer)
        _check_length(self._model, len(ids), pair)
        asked = torch.tensor([ids], device=self._model.device)
        reward = float(self._model(input_ids=asked).logits.float())
        if math.isnan(reward):
            raise ValueError("the reward model gives NaN; it is damaged, or its dtype overflows.")
        return reward


def _elsewhere(device: torch.device) -> dict[str, str]:
    """Return what an identity says of a device; the CPU, where bits were always made, is silent."""
    return {} if device.type == "cpu" else {"device": device_name(device)}


def is_reward_model(source: str) -> bool:
    """Return whether a model's config says that it classifies sequences.

    Raises:
        FileNotFoundError, ValueError: see ``check_source``.
    """
    check_source(source)
    if source.endswith(".gguf"):
        return False
    names: Sequence[str] = model_config(source).architectures or ()
    return any(name.endswith("ForSequenceClassification") for name in names)


def _check_length(model: "PreTrainedModel", tokens: int, pair: Pair) -> None:
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and tokens > longest:
        raise ValueError(
            f"id {pair.id} in '{pair.language}' needs {tokens:,} tokens, but the judge takes "
            f"{longest:,}; generate shorter answers (--max-tokens), or give a judge with a longer "
            "context."
        )
