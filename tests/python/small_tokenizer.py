"""A real fast tokenizer, small enough to train in the blink of an eye."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

_LINES = [
    "The market opens before sunrise and the first buyers are waiting beside the road.",
    "Le marché ouvre avant l'aube et les premiers acheteurs attendent au bord de la route.",
    "Soko hufunguliwa kabla ya jua kuchomoza na wanunuzi wa kwanza wanasubiri kando ya barabara.",
    "市场在日出前开门。第一批买家已经在路边等候。",
]


def make_tokenizer(
    template: str | None = None, trim_offsets: bool = False, cls: Any = PreTrainedTokenizerFast
) -> Any:
    """Train a byte-level BPE with the special tokens <s> (bos) and </s> (eos).

    Args:
        template: what is put around a document, e.g. "<s> $A </s>".
        trim_offsets: leave white space out of offsets, as Llama 3's tokenizer does.
        cls: the class that wraps it.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_LINES, trainer)
    steps = [processors.ByteLevel(trim_offsets=trim_offsets)]
    if template:
        special = [("<s>", 0), ("</s>", 1)]
        steps.append(processors.TemplateProcessing(single=template, special_tokens=special))
    tokenizer.post_processor = processors.Sequence(steps)
    return cls(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
