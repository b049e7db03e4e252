"""What a pass takes, what it does without where memory is short, and blocks that are read ahead."""

import dataclasses
import threading
from contextlib import closing, contextmanager
from types import SimpleNamespace

import pytest
import torch
from small_models import tiny_llama, tiny_model
from torch import nn

import mlcalib
from mlcalib import _core
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.formats import formats
from mlcalib.models.device import CPU
from mlcalib.models.experts import experts_of_token
from mlcalib.quantization import memory, pass_plan
from mlcalib.quantization.block_pass import run_pass
from mlcalib.quantization.memory import plan_memory
from mlcalib.quantization.open_source import live_source, open_source
from mlcalib.quantization.pass_plan import plan_pass
from mlcalib.quantization.prefixes import mixture_of
from mlcalib.quantization.propagation import Flow
from mlcalib.quantization.quantization_job import QuantizationJob
from mlcalib.quantization.read_ahead import Blocks
from mlcalib.quantization.sink import MemorySink
from mlcalib.quantization.variant import Variant
from mlcalib.quantizers import quantizers
from mlcalib.statistics import grows_with_square, statistic_bytes

OPTIONS = {"group_size": 32, "progress": False, "device": "cpu"}
TINY = 1e-6  # GB: nothing fits


@pytest.fixture(scope="module")
def text():
    """Four languages of different lengths."""
    corpus = {
        code: [[(step * i + j * j) % 360 for j in range(40 + 9 * step)] for i in range(2)]
        for step, code in enumerate(("en", "sw", "fr", "zh"), 1)
    }
    return mlcalib.calibration(None, corpus=corpus, seq_len=32)


@pytest.fixture(scope="module")
def model():
    return tiny_llama(vocabulary=384)


def assert_same(one, other):
    assert one.linears.keys() == other.linears.keys()
    for name, linear in one.linears.items():
        assert torch.equal(linear.codes, other.linears[name].codes)
        assert torch.equal(linear.grid.scale, other.linears[name].grid.scale)
    assert one.losses == other.losses
    assert one.ranges == other.ranges
    assert one.expert_tokens == other.expert_tokens
    state = other.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in one.model.state_dict().items())


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("llama", {"propagate": "float"}),
        ("llama", {"correction": "auto"}),
        ("qwen2_moe", {"fisher_tokens": 10_000, "format": "dense"}),
        ("llama", {"method": "awq", "objective": "block"}),
        ("mixtral", {"method": "awq", "propagate": "float", "format": "dense"}),
        ("llama", {"method": "smoothquant", "group_size": -1, "format": "compressed-tensors-int8"}),
    ],
)
def test_languages_in_turns_give_the_same_bits(family, options, text, tokenizer, caplog):
    model = tiny_model(family, vocabulary=384)
    options = OPTIONS | {"tokenizer": tokenizer} | options
    at_once = mlcalib.quantize(model, text, **options)
    assert not caplog.text
    memory = room_for_one(model, text) if family == "mixtral" else TINY
    assert_same(at_once, mlcalib.quantize(model, text, memory=memory, **options))
    assert "at most 1 of 4 languages are held at a time, in 4 turns" in caplog.text
    assert ("Even so" in caplog.text) == (memory == TINY)


def room_for_one(model, text, method="awq"):
    """Return the GB that a method takes with the statistics of one language at a time."""
    source, job = source_and_job(model, text, method)
    whole = plan_pass(source, [job], text, source.places("cpu"))
    sizes = whole.needs.statistics.values()
    return (whole.total - sum(sizes) + max(sizes) + whole.needs.turns + 1) / 1e9


@pytest.mark.parametrize("method", ["gptq", "awq", "rtn"])
def test_diagonals_change_no_code(text, tokenizer, caplog, method):
    model = tiny_model("mixtral", vocabulary=384)
    options = OPTIONS | {"tokenizer": tokenizer, "method": method, "format": "dense"}
    whole = mlcalib.quantize(model, text, **options)
    short = mlcalib.quantize(model, text, memory=TINY, **options)
    assert "Of experts only the mixture of the languages has Grams" in caplog.text
    for name, linear in whole.linears.items():
        assert torch.equal(linear.codes, short.linears[name].codes)
        assert torch.equal(linear.grid.scale, short.linears[name].grid.scale)
        alike = whole.losses[name] == short.losses[name]
        assert alike == ("experts" not in name)
    kept = {name: each.statistics for name, each in (("gram", whole), ("diagonal", short))}
    for statistic, of_linears in kept.items():
        assert set(of_linears.values()) == {statistic}
        assert set(of_linears) == {name for name in whole.linears if "experts" in name}
    assert any("those of the diagonals" in line for line in short.warnings())
    assert not any("those of the diagonals" in line for line in whole.warnings())
    assert whole.ranges == short.ranges
    assert whole.expert_tokens == short.expert_tokens


def test_of_experts_those_of_a_token_count(text):
    model = tiny_model("mixtral", vocabulary=384)
    chosen = model.config.num_experts_per_tok
    assert 0 < chosen < 4
    assert experts_of_token(model.config, 4) == chosen
    assert experts_of_token(tiny_llama().config, 4) == 4
    plan = planned(model, text, memory=TINY)
    longest = max(ids.numel() for ids in text.ids.values())
    assert plan.needs.rows == longest * chosen * (64 + 128) * 4
    outputs = 64 + 2 * 32 + 64 + chosen * (2 * 128 + 64)
    assert plan.needs.forward == 2 * 32 * (outputs + 4 * 64) * 4


def test_diagonals_are_kept_where_a_language_at_a_time_is_too_much(text):
    model = tiny_model("mixtral", vocabulary=384)
    turns = planned(model, text, memory=room_for_one(model, text, "gptq"))
    assert (turns.diagonal, len(turns.groups)) == (False, 4)
    less = planned(model, text, memory=TINY)
    assert less.diagonal
    assert less.total < turns.total
    assert "what experts read of a language" in less.table()
    enough = planned(model, text, memory=less.total / 1e9)
    assert enough.diagonal
    assert not any("Even so" in step for step in enough.steps)


def source_and_job(model, text, method="gptq"):
    source = live_source(model)
    kind = quantizers.get(method)
    quantizer = kind(kind.Options(bits=4, group_size=32), torch.float32)
    sink = MemorySink(source.model, source.adapter, formats.get("dense")())
    mixture = {} if text is None else mixture_of(text)
    return source, QuantizationJob(Variant(quantizer, {}, mixture), sink)


def planned(model, text, **options):
    source, job = source_and_job(model, text)
    return plan_pass(source, [job], text, source.places("cpu"), **options)


def test_as_many_languages_as_fit_are_held_at_a_time(model, text):
    whole = planned(model, text)
    assert whole.groups == [["en", "sw", "fr", "zh"]]
    assert whole.steps == []
    sizes = whole.needs.statistics
    assert len(set(sizes.values())) == 1
    for count, groups in [(3, [["en", "sw", "fr"], ["zh"]]), (2, [["en", "sw"], ["fr", "zh"]])]:
        room = whole.total - (4 - count) * sizes["en"]
        plan = planned(model, text, memory=(room + 1) / 1e9)
        assert plan.groups == groups
        assert plan.total <= plan.budget
        assert [f"at most {count} of 4 languages" in step for step in plan.steps] == [True]


def forwards(model, text, jobs=1, **options):
    """Return how often the first block's first linear runs, and what is recorded of blocks."""
    source, job = source_and_job(model, text)
    further = [source_and_job(model, text)[1] for _ in range(jobs - 1)]
    count = 0

    def hook(*_):
        nonlocal count
        count += 1

    linear = source.model.model.layers[0].self_attn.q_proj
    handle = linear.register_forward_hook(hook)
    run_pass(source, [job, *further], text, stopwatch=Stopwatch(), description=None, **options)
    handle.remove()
    names = [f"model.layers.{i}" for i in range(len(model.model.layers))]
    return count, [each.sink.record(name) for each in (job, *further) for name in names]


@pytest.mark.parametrize(
    ("propagate", "jobs", "at_once", "in_turns"),
    [("float", 1, 1, 2), ("float", 3, 1, 2), ("quantized", 1, 2, 3)],
)
def test_turns_cost_a_forward_more(model, text, propagate, jobs, at_once, in_turns):
    sequences = sum(map(len, text.ids.values()))
    options = {"propagate": propagate, "jobs": jobs}
    count, records = forwards(model, text, **options)
    assert count == at_once * sequences
    assert forwards(model, text, memory=TINY, **options) == (in_turns * sequences, records)


def test_the_grams_of_one_language_at_a_time_are_gathered_twice(model, text, monkeypatch):
    seen = []
    collect = Flow.collect

    def watched(self, *args, **options):
        found = collect(self, *args, **options)
        seen.append({prefix.language for each in found.values() for prefix in each})
        return found

    monkeypatch.setattr(Flow, "collect", watched)
    source, job = source_and_job(model, text)
    run = {"propagate": "float", "stopwatch": Stopwatch(), "description": None}
    run_pass(source, [job], text, memory=TINY, **run)
    assert seen == [{code} for code in text.ids] * 2 * 2  # in each of two blocks


def test_jobs_that_look_at_every_language_are_not_split(model, text, caplog):
    matrices = [
        mlcalib.imatrix(model, text, progress=False, device="cpu", memory=size).mix()
        for size in (None, TINY)
    ]
    assert "turns:" not in caplog.text
    assert "Even so" in caplog.text
    for name, entry in matrices[0].items():
        assert (entry.squares == matrices[1][name].squares).all()


def test_the_plan_counts_what_is_there(model, text):
    plan = planned(model, text)
    block = model.model.layers[0]
    hidden = sum(ids.numel() for ids in text.ids.values()) * 64 * 4
    gram = sum(statistic_bytes("gram", size, CPU) for size in (64, 64, 64, 128))
    assert plan.needs.hidden == hidden
    assert plan.needs.block == 0  # it is there
    assert plan.needs.statistics["en"] >= gram
    weights = sum(each.numel() for each in block.parameters())
    assert plan.needs.solve > weights * 5
    table = plan.table()
    for word in ("hidden states of all text", "statistics of zh", *plan.needs.inputs):
        assert word in table
    kinds = ("gram", "deviation", "range", "moments", "histogram")
    for kind in kinds:
        state = _core.make_statistic(kind, 48).state()
        size = sum(each.nbytes for each in state.values())
        assert statistic_bytes(kind, 48, torch.device("meta")) == size
    assert [kind for kind in kinds if grows_with_square(kind)] == ["gram", "deviation"]
    assert plan.table().count("statistics of") == 4


def test_on_a_device_hidden_states_go_first_then_the_block_ahead(model, text, monkeypatch):
    source, job = source_and_job(model, text)
    device = torch.device("meta")
    free = 0
    monkeypatch.setattr(memory, "free_memory", lambda _: (free, free))

    def plan():
        return plan_pass(source, [job], text, dict.fromkeys(source.places("cpu"), device))

    free = 10**9
    roomy = plan()
    assert (roomy.on_host, roomy.ahead, roomy.steps) == (False, True, [])
    needs = roomy.needs
    assert needs.block == sum(each.nbytes for each in model.model.layers[0].parameters())
    free = int((roomy.total - 1) / 0.9)
    assert (plan().on_host, plan().ahead, len(plan().steps)) == (True, True, 1)
    free = int((roomy.total - needs.hidden - 1) / 0.9)
    assert (plan().on_host, plan().ahead, len(plan().steps)) == (True, False, 2)
    free = int((roomy.total - needs.hidden - needs.block - 1) / 0.9)
    assert [len(plan().groups), len(plan().steps)] == [2, 3]
    assert "(in the host's memory)" in plan().table()


@pytest.mark.parametrize("size", [0, -1, float("nan")])
def test_memory_that_is_none_is_refused(model, text, tokenizer, size):
    with pytest.raises(ValueError, match=r"memory is .*, expected GB above 0"):
        mlcalib.quantize(model, text, tokenizer=tokenizer, memory=size, **OPTIONS)


def test_out_of_memory_names_the_block_and_what_takes_less(model, text, monkeypatch):
    source, job = source_and_job(model, text)

    def fail(*_, **__):
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Variant, "solve", fail)
    with pytest.raises(torch.OutOfMemoryError) as error:
        run_pass(source, [job], text, propagate="float", stopwatch=Stopwatch(), description=None)
    said = str(error.value)
    for words in (
        "model.layers.0 at work",
        "statistics of zh",
        "--seq-len",
        "--hidden-states disk",
    ):
        assert words in said


def test_streamed_in_turns_is_the_same_checkpoint(model, text, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for name, size in (("a", None), ("b", TINY)):
        mlcalib.quantize_checkpoint(
            tmp_path / "model", tmp_path / name, text, memory=size, **OPTIONS
        )
    a, b = (tmp_path / name / "model.safetensors" for name in "ab")
    assert a.read_bytes() == b.read_bytes()


class Reader:
    """A source that counts the blocks that are open, and fails on one of them."""

    def __init__(self, bad=None):
        self.open, self.most, self.bad, self.threads = 0, 0, bad, set()
        self.lock = threading.Lock()

    @contextmanager
    def block(self, name):
        with self.lock:
            self.open += 1
            self.most = max(self.most, self.open)
            self.threads.add(threading.current_thread().name)
        try:
            if name == self.bad:
                raise OSError(5, "Input/output error")
            yield nn.Linear(2, 2)
        finally:
            with self.lock:
                self.open -= 1


NAMES = [f"layers.{index}" for index in range(5)]


@pytest.mark.parametrize("ahead", [True, False])
def test_one_block_is_read_ahead_and_no_more(ahead):
    source = Reader()
    with closing(Blocks(source, NAMES, dict.fromkeys(NAMES, CPU), ahead=ahead)) as blocks:
        for name in NAMES:
            with blocks.block(name) as block:
                assert isinstance(block, nn.Linear)
    assert source.open == 0
    assert source.most <= 2 if ahead else source.most == 1
    assert any(name.startswith("read-ahead") for name in source.threads) == ahead


@pytest.mark.parametrize("ahead", [True, False])
def test_a_block_that_cannot_be_read_is_named(ahead):
    source, taken = Reader(bad="layers.2"), []

    def take_all():
        with closing(Blocks(source, NAMES, dict.fromkeys(NAMES, CPU), ahead=ahead)) as blocks:
            for name in NAMES:
                with blocks.block(name):
                    taken.append(name)

    with pytest.raises(OSError, match=r"layers.2: Input/output error"):
        take_all()
    assert taken == NAMES[:2]
    assert source.open == 0


def test_a_block_that_nobody_takes_is_given_back():
    source = Reader()
    blocks = Blocks(source, NAMES, dict.fromkeys(NAMES, CPU), ahead=True)
    with blocks.block(NAMES[0]):
        pass
    blocks.close()
    assert source.open == 0


def test_reading_ahead_changes_nothing(model, text, tokenizer, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    plan = plan_memory

    def ahead(*args, **options):
        return dataclasses.replace(plan(*args, **options), ahead=True)

    mlcalib.quantize_checkpoint(tmp_path / "model", tmp_path / "a", text, **OPTIONS)
    monkeypatch.setattr(pass_plan, "plan_memory", ahead)
    mlcalib.quantize_checkpoint(tmp_path / "model", tmp_path / "b", text, **OPTIONS)
    a, b = (tmp_path / name / "model.safetensors" for name in "ab")
    assert a.read_bytes() == b.read_bytes()


def test_a_streamed_model_is_planned_without_its_weights(model, text, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "model")
    source = open_source(tmp_path / "model", "auto")
    plan = plan_pass(source, [], text, source.places("cpu"))
    assert plan.needs.block == sum(each.nbytes for each in model.model.layers[0].parameters())
    assert plan.needs.solve == 0


def test_hooks_of_accelerate_are_respected(text, tokenizer):
    accelerate = pytest.importorskip("accelerate")
    model = tiny_llama(vocabulary=384)
    expected = mlcalib.quantize(model, text, tokenizer=tokenizer, **OPTIONS)
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    places |= {"lm_head": "cpu", "model.layers.0": "cpu", "model.layers.1": "cpu"}
    spread = accelerate.dispatch_model(tiny_llama(vocabulary=384), places, force_hooks=True)
    forward = spread.model.layers[0].forward
    found = mlcalib.quantize(spread, text, tokenizer=tokenizer, **OPTIONS | {"device": "auto"})
    assert_same(expected, found)
    assert spread.model.layers[0].forward is forward
    ids = text.ids["en"][:1]
    assert torch.equal(found.model(ids).logits, expected.model(ids).logits)
    assert hasattr(found.model.model.layers[0], "_hf_hook")  # still spread


def test_offloaded_weights_are_refused_with_a_reason(text, tokenizer):
    accelerate = pytest.importorskip("accelerate")
    model = accelerate.cpu_offload(tiny_llama(vocabulary=384), execution_device="cpu")
    with pytest.raises(NotImplementedError, match="Give the folder in place of the model"):
        mlcalib.quantize(model, text, tokenizer=tokenizer, **OPTIONS)


def test_blocks_stay_where_they_are(model, monkeypatch):
    source = live_source(model)
    meta = torch.device("meta")
    blocks = dict(source.adapter.named_blocks(source.model))
    gpus = {name: torch.device("cuda", index) for index, name in enumerate(blocks)}

    def parameters(name):
        return lambda: iter([SimpleNamespace(device=gpus[name])] * 2)

    assert set(source.places("auto").values()) == {CPU}
    for name, block in blocks.items():
        monkeypatch.setattr(block, "parameters", parameters(name))
    assert source.places("auto") == gpus
    assert set(source.places("cpu").values()) == {CPU}
    first = blocks["model.layers.0"]
    two = [SimpleNamespace(device=CPU), SimpleNamespace(device=meta)]
    monkeypatch.setattr(first, "parameters", lambda: iter(two))
    with pytest.raises(ValueError, match=r"model.layers.0 has weights on several devices \(cpu, m"):
        source.places("auto")


def test_statistics_of_the_loss_are_counted(model, text):
    source = live_source(model)
    options = quantizers.get("gptq").Options
    mixture = mixture_of(text)

    def needs(tokens):
        made = quantizers.get("gptq")(options(group_size=32, fisher_tokens=tokens), torch.float16)
        jobs = [QuantizationJob(Variant(made, {}, mixture), None)]
        return plan_pass(source, jobs, text, source.places("cpu")).needs

    assert needs(0).fisher == 0
    states = 2 * 64 * 64 * 4 * 2  # tokens, channels, bytes, blocks
    assert needs(128).fisher - needs(64).fisher == states
    grams = 3 * 64**2 + 128**2 + 2 * (64**2 + 2 * 32**2 + 64**2 + 2 * 128**2 + 64**2)
    assert needs(64).fisher - states >= grams  # in float32, one triangle, of a language and of all
