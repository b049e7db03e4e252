"""Whether a model can read a text, found out before it does."""

from inspect import signature
from typing import TYPE_CHECKING

from torch import Tensor

from mlcalib.calibration_sets import CalibrationSet
from mlcalib.models.context import check_context

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def check_text(
    model: "PreTrainedModel",
    text: CalibrationSet,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> None:
    """Refuse token ids that have no embedding, and sequences longer than the model's context.

    Args:
        model: its config and the shape of its embedding are read; it needs no weights.
        text: the token ids.
        tokenizer: names the token in the message.

    Raises:
        ValueError: says which id, or how long a sequence may be; or there are images, and the model
            does not take them.
    """
    name = type(model).__name__
    check_context(name, model.config.to_dict(), text.seq_len)
    for language, images in text.inputs.items():
        given = {each for inputs in images.values() for each in inputs}
        if unknown := sorted(given - signature(model.forward).parameters.keys()):
            raise ValueError(
                f"The text in '{language}' has images, for which a processor made "
                f"{', '.join(unknown)}, and {name} does not take that: make the calibration set "
                "with the model itself (calibration(MODEL, …)), or leave out images."
            )
    for language, ids in text.ids.items():
        check_ids(model, ids, f"The text in '{language}'", tokenizer)


def check_ids(
    model: "PreTrainedModel",
    ids: Tensor,
    what: str,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> None:
    """Refuse token ids that have no embedding.

    Args:
        model: the shape of its embedding is read; it needs no weights.
        ids: int64, of any shape but empty.
        what: the text, in the message.
        tokenizer: names the token in the message.

    Raises:
        ValueError: says which id.
    """
    rows, highest = model.get_input_embeddings().weight.shape[0], int(ids.max())
    if highest >= rows:
        token = "" if tokenizer is None else f" ({tokenizer.convert_ids_to_tokens(highest)!r})"
        raise ValueError(
            f"{what} has the token {highest}{token}, but the model's embedding has {rows} rows. "
            "The tokenizer belongs to another model, or has tokens that the model was never "
            "given: leave that token out of the text (another separator, another chat template), "
            "or give the model's own tokenizer."
        )
