"""Turns conversations with images into token ids, and into what the model is given beside them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mlcalib.calibration_sets.tokens import Encoded
from mlcalib.corpora import Conversation, Tally

if TYPE_CHECKING:
    from transformers import ProcessorMixin

Processor = Callable[[], "ProcessorMixin | None"]
"""Gives the processor of a model, which is loaded when the first image comes; None for none."""


def encode_images(
    processor: "ProcessorMixin",
    conversation: Conversation,
    template: str,
    tally: Tally,
    seq_len: int,
) -> Encoded | None:
    """Return a conversation with images as one sequence, or count why it is none and return None.

    The processor of the model puts as many tokens where an image stands as the image has patches.

    Args:
        processor: of the model.
        conversation: with images in local files.
        template: the chat template.
        tally: counts what is left out.
        seq_len: the longest that a sequence can be. Text behind the last image is cut off there.
    """
    try:
        batch = processor.apply_chat_template(
            list(conversation),
            tools=conversation.tools,
            chat_template=template,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    except Exception as error:  # of the template, or of the reader of images
        reason = f"{type(error).__name__}: {error}"
        tally.drop("conversations with images that the model's processor refuses", reason)
        return None
    ids: Tensor = batch.pop("input_ids")
    batch.pop("attention_mask", None)  # all of it is text
    inputs = {name: each for name, each in batch.items() if isinstance(each, Tensor)}
    length = ids.shape[1]
    last = _last_image(processor, ids[0])
    if last >= seq_len:
        said = f"the last image ends at token {last + 1:,}, and a sequence has {seq_len:,}"
        tally.drop("conversations whose images are longer than a sequence", said)
        return None
    along = {name for name, each in inputs.items() if each.shape[:2] == ids.shape}
    for name in along:  # what is said of each token
        filled = inputs[name].new_zeros(1, seq_len, *inputs[name].shape[2:])
        filled[:, : min(length, seq_len)] = inputs[name][:, :seq_len]
        inputs[name] = filled
    return Encoded(_text(conversation), ids[0, :seq_len].tolist(), [], inputs)


def _last_image(processor: Any, ids: Tensor) -> int:
    """Return the place of the last token of an image; the last of all where none is known."""
    known = getattr(processor, "image_token_id", None)
    if known is None:
        return len(ids) - 1
    places = (ids == known).nonzero()
    return int(places.max()) if len(places) else len(ids) - 1


def _text(conversation: Conversation) -> str:
    parts = (part for message in conversation for part in message["content"])
    return "\n".join(part["text"] for part in parts if part["type"] == "text")
