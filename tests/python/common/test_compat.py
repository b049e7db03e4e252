"""What is not public of other libraries, where no other test would notice that it changed."""

import json
import os
import subprocess
import sys

import pytest
from small_models import tiny_llama

from mlcalib.common import compat

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def run(program, **environment):
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    ).stdout.split()


def test_nothing_is_imported_before_it_is_needed():
    program = "import sys, mlcalib.common.compat; print(*sys.modules)"
    assert not {"transformers", "lm_eval", "datasets", "huggingface_hub"} & {*run(program)}


def test_a_model_of_the_hub_has_a_commit_and_a_folder_has_none(tmp_path):
    """In a cache laid out as the hub's, without a network."""
    model = tmp_path / "hub/models--org--a"
    snapshot = model / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs/main").write_text(COMMIT)
    (snapshot / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "config.json").write_text("{}")
    program = (
        "from mlcalib.common.compat import hub_commit\n"
        f"print(hub_commit('org/a'), hub_commit({str(tmp_path)!r}))"
    )
    assert run(program, HF_HUB_CACHE=str(tmp_path / "hub")) == [COMMIT, "None"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [("llama", "LlamaForCausalLM"), ("mixtral", "MixtralForCausalLM"), ("t5", None), ("?", None)],
)
def test_the_class_of_a_type_of_models(kind, name):
    assert compat.causal_architecture(kind) == name


def test_a_cache_is_taken_and_given_by_its_name():
    """Under the filters of this project, a deprecated name would be an error."""
    model = tiny_llama()
    first = model(model.dummy_inputs["input_ids"], use_cache=True)
    cache = first[compat.cache_name()]
    length = cache.get_seq_length()
    again = model(model.dummy_inputs["input_ids"], use_cache=True, **{compat.cache_name(): cache})
    assert again[compat.cache_name()].get_seq_length() == 2 * length > 0
