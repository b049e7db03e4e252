"""What several test files share."""

import os
from inspect import unwrap
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported

import standin

standin.load_if_asked()  # before anything imports mlcalib

from small_text import IDS  # noqa: E402
from small_tokenizer import make_tokenizer  # noqa: E402

import mlcalib  # noqa: E402


def pytest_configure() -> None:
    """Let faults on the stand-in device be named where pytest does not capture."""
    standin.name_faults_if_asked()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A small byte-level tokenizer that, like SmolLM2's, adds nothing to a document."""
    return make_tokenizer()


@pytest.fixture
def calibration() -> mlcalib.CalibrationSet:
    """Sequences of 32 tokens in two languages; the last of each is not full."""
    return mlcalib.calibration(None, corpus=IDS, seq_len=32)


@pytest.fixture
def saved(tmp_path, tokenizer):
    """Return what saves a model with the tokenizer into a folder of a name, which it returns."""

    def save(model, name="model"):
        folder = tmp_path / name
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def registered(monkeypatch):
    """Let ``from_pretrained`` pack in this test; others are to find transformers as it is."""
    from transformers import modeling_utils
    from transformers.quantizers import auto

    for user in (auto, modeling_utils):  # unwrapped: code of a page may have registered before
        monkeypatch.setattr(user, "get_hf_quantizer", unwrap(user.get_hf_quantizer))
    mlcalib.register_packed.cache_clear()
    mlcalib.register_packed()
    yield
    mlcalib.register_packed.cache_clear()
