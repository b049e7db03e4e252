"""Prefixes of text, and hidden states on their way."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from small_models import tiny_llama, tiny_model

import mlcalib
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.models import find_adapter
from mlcalib.models.experts import unfuse
from mlcalib.quantization import block_statistics
from mlcalib.quantization.block_files import BlockFiles
from mlcalib.quantization.hidden_states import HiddenStates, HiddenStatesOnDisk
from mlcalib.quantization.prefixes import Prefix
from mlcalib.quantization.propagation import Flow
from mlcalib.statistics import StatisticSet

IDS = {
    "en": [[(7 * i + j * j) % 100 for j in range(16)] for i in range(5)],
    "sw": [[(11 * i + 5 * j) % 100 for j in range(16)] for i in range(3)],
}
KINDS = ("gram", "range", "moments")


def collected(model, ids, prefixes=(), hidden=None, blocks=1):
    adapter = find_adapter(type(model).__name__)
    unfuse(model, adapter)
    text = mlcalib.calibration(None, corpus=ids, seq_len=16)
    flow = Flow(model, adapter, text, Stopwatch(), prefixes=prefixes, hidden=hidden)
    for name, block in adapter.named_blocks(model)[:blocks]:
        with torch.no_grad():
            found = flow.collect(name, block, KINDS, skipped=(), advance=True)
        flow.turn()
    return found


def first(ids, language, tokens):
    """The ids that a calibration set of fewer tokens would have."""
    rows = ids[language][: -(-tokens // 16)]
    flat = [token for row in rows for token in row]
    return {language: [flat[:tokens]]}


@pytest.fixture(params=[None, 24], ids=["as they come", "joined"])
def tokens_at_once(request, monkeypatch):
    """As on the CPU, and as on a device that wants more tokens than a sequence has."""
    monkeypatch.setattr(block_statistics, "tokens_at_once", lambda _: request.param)


@pytest.mark.usefixtures("tokens_at_once")
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sets(st.integers(1, 80), min_size=1, max_size=4), st.integers(1, 48))
def test_prefixes_have_the_bits_of_sets_of_their_own(counts, other):
    model = tiny_llama()
    prefixes = [Prefix("en", count) for count in counts] + [Prefix("sw", other)]
    together = collected(model, IDS, prefixes)
    for language, count in prefixes:
        alone = collected(model, first(IDS, language, count))
        for name, by_prefix in alone.items():
            (found,) = by_prefix.values()
            assert found.tokens == together[name][language, count].tokens == count
            for kind in KINDS:
                for key, tensor in found.state(kind).items():
                    shared = together[name][language, count].state(kind)[key]
                    if kind != "gram" or count % 16 == 0:
                        assert torch.equal(shared, tensor)
                    else:  # a last sequence that is filled up differently moves no causal token
                        torch.testing.assert_close(shared, tensor)


@pytest.mark.usefixtures("tokens_at_once")
def test_experts_count_only_the_tokens_of_a_prefix():
    model = tiny_model("mixtral")
    together = collected(model, IDS, [Prefix("en", 20), Prefix("en", 80), Prefix("sw", 7)])
    experts = {name: found for name, found in together.items() if name.startswith("expert")}
    assert experts
    for count in (20, 80):
        # Each token goes to two experts, and each of these reads two inputs.
        tokens = [found["en", count].tokens for found in experts.values()]
        assert sum(tokens) == 2 * 2 * count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_states_on_disk_are_those_in_memory(dtype, tmp_path):
    model = tiny_llama(dtype=dtype)
    memory = collected(model, IDS, blocks=2)
    disk = collected(model, IDS, hidden=HiddenStatesOnDisk(tmp_path), blocks=2)
    for name, by_prefix in memory.items():
        for prefix, found in by_prefix.items():
            assert torch.equal(found.gram(), disk[name][prefix].gram())


def test_what_a_turn_left_is_found_again(tmp_path):
    states = HiddenStatesOnDisk(tmp_path)
    a, b = torch.randn(1, 4, 8), torch.randn(1, 4, 8)
    states.write("en", 0, a)
    states.write("en", 1, b)
    states.turn()
    states.write("en", 0, b)  # of the next block, which is not finished
    again = HiddenStatesOnDisk(tmp_path)
    assert again.position == 0
    assert torch.equal(again.read("en", 0), a)
    assert torch.equal(again.read("en", 1), b)
    again.restart()
    assert HiddenStatesOnDisk(tmp_path).position == -1


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    states = HiddenStatesOnDisk(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.open", full)
    with pytest.raises(OSError, match=r"cannot write .*en-0\.bin: No space left"):
        states.write("en", 0, torch.zeros(1, 2, 2))


def test_states_in_memory_turn_too():
    states = HiddenStates()
    states.write("en", 0, torch.zeros(1))
    states.turn()
    assert states.position == 0
    states.restart()
    assert states.position == -1


@pytest.mark.parametrize(
    "change",
    [
        {"position": "1"}, {"shape": [2**40]}, {"shape": []}, {"shape": [0, 2**31 - 1]},
        {"dtype": "nn"}, {"dtype": "int8"}, {"position": -2},
    ],
)  # fmt: skip
def test_a_damaged_record_of_hidden_states_is_named(change, tmp_path):
    states = HiddenStatesOnDisk(tmp_path)
    states.write("en", 0, torch.zeros(1, 2, 2))
    states.turn()
    record = tmp_path / "hidden_states.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), **change}))
    with pytest.raises(ValueError, match=r"hidden_states\.json is damaged .* remove"):
        HiddenStatesOnDisk(tmp_path)


def test_states_are_not_made_room_for_before_they_are_there(tmp_path):
    states = HiddenStatesOnDisk(tmp_path)
    states.write("en", 0, torch.zeros(1, 2, 2))
    states.turn()
    record = tmp_path / "hidden_states.json"
    large = {"position": 0, "shape": [2**30, 2**30], "dtype": "float32"}
    record.write_text(json.dumps(large))
    with pytest.raises(ValueError, match=r"en-0\.bin ends early; remove"):
        HiddenStatesOnDisk(tmp_path).read("en", 0)


@pytest.mark.parametrize(
    "record", ["", "[]", "{}", '{"names": ["b"]}', '{"names": [1]}', "{" * 500]
)
def test_a_damaged_record_of_a_block_is_named(record, tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "0.safetensors", {"record": record})
    with pytest.raises(ValueError, match=r"0\.safetensors has no record of a block"):
        BlockFiles(tmp_path).pieces("0")


def test_a_cut_off_block_is_named(tmp_path):
    BlockFiles(tmp_path).write("0", {"a": torch.zeros(2)}, {})
    path = tmp_path / "0.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    for read in (BlockFiles(tmp_path).tensors, BlockFiles(tmp_path).record):
        with pytest.raises(ValueError, match=r"0\.safetensors is not a usable safetensors file"):
            read("0")


def test_nan_that_no_update_found_is_found_at_the_end_and_has_a_place(monkeypatch):
    def check(statistics):
        # As a device does that counts it: the last input of 'sw' alone.
        if statistics.tokens == 48 and statistics._channels == 128:
            raise ValueError("the activations held 1 NaN")

    monkeypatch.setattr(StatisticSet, "check_finite", check)
    with pytest.raises(
        ValueError,
        match=r"^input of model\.layers\.0\.mlp\.down_proj, text in 'sw': the activations held",
    ):
        collected(tiny_llama(), IDS)
