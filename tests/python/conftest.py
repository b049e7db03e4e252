"""What several test files share."""

from typing import Any

import pytest
from small_tokenizer import make_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A small byte-level tokenizer that, like SmolLM2's, adds nothing to a document."""
    return make_tokenizer()
