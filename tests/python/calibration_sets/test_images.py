"""Conversations with images: a sequence each, which the whole model sees."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_tokenizer import make_tokenizer
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import mlcalib
from mlcalib.calibration_sets.sequences import pack
from mlcalib.calibration_sets.tokens import Encoded
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.models import adapter_for
from mlcalib.quantization.prefixes import Prefix
from mlcalib.quantization.propagation import Flow

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: "
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}\n{% endfor %}"
)
PATCHES = 4
SEQ_LEN = 48


@pytest.fixture(scope="module")
def processor():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )


@pytest.fixture(scope="module")
def model(processor):
    torch.manual_seed(0)
    vision = {"hidden_size": 32, "intermediate_size": 48, "image_size": 16, "patch_size": 8}
    text = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": len(processor.tokenizer)}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision, num_hidden_layers=2, num_attention_heads=2),
        text_config=LlamaConfig(
            **text, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
        ),
        image_token_index=processor.image_token_id,
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config).eval()


def conversation(text, file):
    image = [] if file is None else [{"type": "image", "path": str(file)}]
    return [
        {"role": "user", "content": [*image, {"type": "text", "text": text}]},
        {"role": "assistant", "content": "a red square"},
    ]


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "red.png"
    Image.new("RGB", (20, 16), (200, 30, 30)).save(file)
    return file


def two_languages(picture):
    return {
        "en": [conversation("what is this", picture), conversation("and this", None)] * 3,
        "sw": [conversation("hii ni nini", None)] * 6,
    }


def calibrate(processor, texts, **options):
    options = {"tokens_per_language": 64, "seq_len": SEQ_LEN, "chat_template": True} | options
    return mlcalib.calibration(processor, corpus=texts, **options)


def test_an_image_is_seen_in_a_sequence_of_its_own(processor, picture):
    made = calibrate(processor, two_languages(picture))
    assert made.tokens == {"en": 64, "sw": 64}
    assert "sw" not in made.inputs
    images = made.inputs["en"]
    for index, length in enumerate(made.lengths["en"]):
        ids = made.ids["en"][index]
        has = int((ids == processor.image_token_id).sum())
        assert has == (PATCHES if index in images else 0)
        assert (length < SEQ_LEN) == (index in images)
    for given in images.values():
        assert given["pixel_values"].shape == (1, 3, 16, 16)
    assert made.describe()["images"] == {"en": len(images)}
    assert f"en: {len(images)} sequences are conversations with images" in made.table()
    Image.new("RGB", (20, 16), (30, 30, 200)).save(picture)
    assert calibrate(processor, two_languages(picture)).fingerprint != made.fingerprint


@torch.no_grad()
def test_statistics_are_those_of_the_whole_model_seeing(model, processor, picture):
    made = calibrate(processor, two_languages(picture))
    adapter = adapter_for(model)
    name, block = adapter.named_blocks(model)[0]
    flow = Flow(model, adapter, made, Stopwatch())
    found = flow.collect(name, block, ("moments",), skipped=(), advance=False)
    seen = []
    linear = block.get_submodule("self_attn.q_proj")
    handle = linear.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    for index, (ids, counted) in enumerate(made.sequences("en")):
        model(ids, **made.inputs["en"].get(index, {}))
        seen[-1] = seen[-1][:counted]
    handle.remove()
    expected = torch.cat(seen)
    statistics = found["self_attn.q_proj"][Prefix("en", 64)]
    assert statistics.tokens == len(expected) == 64
    absolute = statistics.state("moments")["absolute"]
    torch.testing.assert_close(
        absolute, expected.abs().sum(0).to(absolute.dtype), rtol=1e-5, atol=0
    )


def test_a_folder_with_images_is_quantized_as_the_model_in_memory(
    model, processor, picture, tmp_path
):
    folder, rows = tmp_path / "model", tmp_path / "text" / "en"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    rows.mkdir(parents=True)
    relative = conversation("what is this", Path("..", "..", picture.name))
    with (rows / "calib.jsonl").open("w") as file:
        file.writelines(json.dumps({"messages": relative}) + "\n" for _ in range(4))
    made = calibrate(folder, f"files:{tmp_path / 'text'}", languages="en")
    assert len(made.inputs["en"]) == len(made.ids["en"])  # padding between does not count
    options = {"method": "gptq", "group_size": 16, "format": "dense", "progress": False}
    ours = mlcalib.quantize(model, made, tokenizer=processor.tokenizer, **options)
    mlcalib.quantize_checkpoint(folder, tmp_path / "out", made, **options)
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    inputs = {"input_ids": made.ids["en"][:1], **made.inputs["en"][0]}
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, ours.model(**inputs).logits)
    for name, tensor in model.model.vision_tower.state_dict().items():
        assert torch.equal(again.model.vision_tower.state_dict()[name], tensor)


def test_what_cannot_be_seen_is_counted(processor, picture, tmp_path):
    def left_out(file, using=processor, **options):
        texts = {"en": [conversation("what is this", file), conversation("and this", None)]}
        everything = {"tokens_per_language": 10**4, "allow_short": True} | options
        return calibrate(using, texts, **everything).report["en"].dropped

    assert left_out(tmp_path / "missing.png") == {
        "conversations with images that are no files on this machine": 1
    }
    assert list(left_out("https://example.org/a.png")) == list(left_out("missing" * 99))
    (tmp_path / "text.png").write_text("no image")
    assert "conversations with images that the model's processor refuses" in left_out(
        tmp_path / "text.png"
    )
    assert left_out(picture, seq_len=6) == {
        "conversations whose images are longer than a sequence": 1
    }
    assert left_out(picture, processor.tokenizer) == {
        "conversations with a message that is no text": 1
    }


def test_a_model_that_sees_no_images_says_so(processor, picture):
    config = LlamaConfig(
        **{"vocab_size": len(processor.tokenizer), "hidden_size": 64, "intermediate_size": 96},
        **{"num_hidden_layers": 1, "num_attention_heads": 2},
    )
    made = calibrate(processor, two_languages(picture))
    with pytest.raises(ValueError, match=r"LlamaForCausalLM does not take that"):
        mlcalib.quantize(LlamaForCausalLM(config), made, tokenizer=processor.tokenizer)


def test_a_smaller_budget_has_the_beginning_of_the_same_sequences():
    text = [Encoded("", list(range(10)), []) for _ in range(8)]
    image = Encoded("", [5, 5, 7], [], {"pixel_values": torch.ones(1)})
    documents = [text[0], image, *text[1:4], image, *text[4:]]
    whole, _ = pack(documents, 70, 8, 0, (), None)
    assert list(whole.inputs) == [1, 6]
    for asked in range(1, 70):
        found, report = pack(documents, asked, 8, 0, (), None)
        assert report.got == asked
        assert sum(found.lengths[:-1]) < asked <= sum(found.lengths)
        same = min(len(found.ids), len(whole.ids)) - 1
        assert torch.equal(found.ids[:same], whole.ids[:same])
