"""Texts → the tokens of a conversation."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def as_chat(
    tokenizer: "PreTrainedTokenizerBase", prompt: str, answer: str | None = None
) -> list[int]:
    """Return the tokens of a prompt, by the tokenizer's chat template if it has one.

    Without one they are those of the plain text, with the special tokens that the tokenizer adds.

    Args:
        tokenizer: of the model that reads it.
        prompt: the user's message.
        answer: the assistant's; None where the model is to give it.
    """
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": prompt}]
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        text = str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=answer is None
            )
        )
        return list(tokenizer(text, add_special_tokens=False).input_ids)
    tokens = list(tokenizer(prompt if answer is None else f"{prompt}\n{answer}").input_ids)
    if answer is None and tokens and tokens[-1] == tokenizer.eos_token_id:
        tokens.pop()  # some tokenizers end every text, but this one goes on
    return tokens
