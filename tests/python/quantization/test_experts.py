"""Mixtures of experts: taken apart, counted per language, never quantized from nothing."""

import json

import pytest
import torch
from foreign_reader import from_transformers
from safetensors import safe_open
from small_models import tiny_model

import mlcalib
from mlcalib import _core
from mlcalib.models import find_adapter
from mlcalib.models.experts import ExpertList, unfuse
from mlcalib.quantization.prefixes import Prefix
from mlcalib.quantization.rare_experts import LEVELLED, PSEUDO_TOKENS, shrink_experts
from mlcalib.statistics import StatisticSet

MOE = ["mixtral", "qwen2_moe", "qwen3_moe"]
IDS = torch.arange(48)[None] * 7 % 128
TEXT = {
    "en": [[(7 * i + j * j) % 128 for j in range(80)] for i in range(3)],
    "sw": [[17] * 3 + [23] * 3],
}


def opened(name, **options):
    model = tiny_model(name, **options)
    adapter = find_adapter(type(model).__name__)
    unfuse(model, adapter)
    return model, adapter


def experts_of(model):
    return {name: m for name, m in model.named_modules() if name.endswith("mlp.experts")}


@pytest.fixture
def calibration():
    """The last sequence of both languages ends inside."""
    return mlcalib.calibration(None, corpus=TEXT, seq_len=32)


@pytest.fixture
def quantize(calibration, tokenizer):
    def quantize(model, **options):
        options = {"group_size": 32, "symmetric": True, "progress": False, **options}
        return mlcalib.quantize(model, calibration, tokenizer=tokenizer, **options)

    return quantize


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MOE)
def test_experts_apart_compute_the_same(name, dtype):
    fused = tiny_model(name, dtype=dtype)
    fused.set_experts_implementation("eager")
    expected = fused(IDS).logits
    model, adapter = opened(name, dtype=dtype)
    assert torch.equal(model(IDS).logits, expected)
    unfuse(model, adapter)  # they stay as they are
    assert torch.equal(model(IDS).logits, expected)


@pytest.mark.parametrize("name", MOE)
def test_no_weight_is_copied(name):
    fused = tiny_model(name)
    storages = {weight.untyped_storage().data_ptr() for weight in fused.parameters()}
    unfuse(fused, find_adapter(type(fused).__name__))
    assert {weight.untyped_storage().data_ptr() for weight in fused.parameters()} == storages


def test_fused_experts_are_not_passed_over():
    model = tiny_model("mixtral")
    with pytest.raises(NotImplementedError, match=r"MixtralExperts, whose experts are fused"):
        list(find_adapter("MixtralForCausalLM").named_linears(model))
    model.model.layers[0].mlp.experts.down_proj = torch.nn.Parameter(torch.zeros(4, 128, 64))
    with pytest.raises(NotImplementedError, match="MixtralExperts does not hold gate_up_proj"):
        unfuse(model, find_adapter("MixtralForCausalLM"))


def test_blocks_with_and_without_experts():
    model, adapter = opened("qwen3_moe")
    dense, sparse = (adapter.linears_of(block) for _, block in adapter.named_blocks(model))
    assert list(dense) == ["attention", "attention output", "mlp", "mlp output"]
    assert list(sparse)[:4] == ["attention", "attention output", "expert 0", "expert 0 output"]
    assert len(sparse) == 2 + 2 * 6
    assert sparse["expert 5"] == ("mlp.experts.5.gate_proj", "mlp.experts.5.up_proj")


@torch.no_grad()
def routed(model, calibration):
    """Return expert → language → the rows its gate reads, of tokens that count: a plain forward."""
    rows = {}
    for path, experts in experts_of(model).items():

        def hook(experts, args, path=path):
            hidden, chosen, _ = args
            for expert in range(len(list(experts.children()))):
                mine = (chosen[:counted] == expert).any(dim=1)
                seen = rows.setdefault(f"{path}.{expert}", {}).setdefault(language, [])
                seen.append(hidden[:counted][mine])

        experts.register_forward_pre_hook(hook)
    for language in calibration.ids:
        for ids, counted in calibration.sequences(language):  # noqa: B007 - read by hook
            model(ids)
    return {
        expert: {language: torch.cat(seen) for language, seen in by_language.items()}
        for expert, by_language in rows.items()
    }


@pytest.mark.parametrize("name", MOE)
def test_an_expert_learns_from_its_own_tokens(quantize, calibration, name):
    expected = routed(opened(name)[0], calibration)
    quantized = quantize(tiny_model(name), method="rtn", propagate="float")
    assert quantized.expert_tokens == {
        expert: {language: len(rows) for language, rows in by_language.items()}
        for expert, by_language in expected.items()
    }
    float_model, adapter = opened(name)
    for expert, by_language in expected.items():
        gate = f"{expert}.{adapter.experts.gate}"
        weight = float_model.get_submodule(gate).weight
        damage = (weight - quantized.linears[gate].dequantize()).double()
        losses = {
            language: (rows.double() @ damage.T).square().sum().item() / len(rows)
            for language, rows in by_language.items()
            if len(rows)
        }
        assert quantized.losses[gate] == pytest.approx(losses, rel=1e-3)


def without_tokens(model):
    """Route every token to two of the first four experts of each block, whatever it is."""
    direction = torch.randn(64, generator=torch.Generator().manual_seed(2))
    for path in experts_of(model):
        router = model.get_submodule(f"{path.removesuffix('experts')}gate")
        router.weight.data.zero_()
        router.weight.data[:4] = torch.tensor([1.0, -1.0, 0.5, -0.5])[:, None] * direction
    return model


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_an_expert_without_tokens_is_rounded_and_named(quantize, tmp_path, method):
    quantized = quantize(without_tokens(tiny_model("qwen3_moe")), method=method)
    unseen = {name for name, seen in quantized.expert_tokens.items() if not any(seen.values())}
    assert unseen == {f"model.layers.1.mlp.experts.{expert}" for expert in (4, 5)}
    how = {"rtn": "rounded", "gptq": "the last linear rounded, others by the Gram of all experts"}
    line = f"experts without any token ({how[method]}): 2 of 6: model.layers.1.mlp.experts 4, 5"
    assert line in quantized.summary().splitlines()
    for expert in unseen:
        name = f"{expert}.down_proj"
        linear = quantized.linears[name]
        spec = linear.grid.spec
        alike = _core.GridSpec(spec.bits, 32, True, "mse" if method == "gptq" else "minmax")
        weight = opened("qwen3_moe")[0].get_submodule(name).weight.detach()
        assert torch.equal(linear.codes, _core.rtn(weight, alike).codes)
        assert quantized.losses[name] == {}
    quantized.save(tmp_path / "out")
    recorded = json.loads((tmp_path / "out" / "mlcalib.json").read_text())
    assert recorded["expert_tokens"] == quantized.expert_tokens


def statistics_of(adapter, block, tokens):
    """Return input → statistics of random tokens; as many as ``tokens`` says of an expert."""
    generator = torch.Generator().manual_seed(3)
    mixed, seen = {}, {}
    for name, members in adapter.linears_of(block).items():
        expert = (adapter.expert_of(members[0]) or "").rpartition(".")[2]
        size = adapter.linear(block, members[0]).in_features
        seen[name] = torch.randn(tokens.get(expert, 9), size, generator=generator)
        mixed[name] = StatisticSet(("gram", "range"), size)
        if len(seen[name]):
            mixed[name].update(seen[name])
    return mixed, seen


def test_rare_experts_are_shrunk_towards_all_experts():
    model, adapter = opened("qwen3_moe")
    (_, dense), (_, block) = adapter.named_blocks(model)
    tokens = {"0": 500, "1": 40, "2": 3, "3": 1, "4": 0, "5": 0}
    mixed, seen = statistics_of(adapter, block, tokens)
    mixture = {Prefix("en", 30): 1.0, Prefix("sw", 10): 3.0}  # tokens weigh 1.5 on average
    shares = shrink_experts(adapter, block, mixed, mixture)
    for name, x in seen.items():
        gram, own = x.double().T @ x.double(), len(x)
        if name.startswith("expert"):
            last = name.endswith("output")
            alike = [
                each for key, each in seen.items() if key[:6] == "expert" and len(key) == len(name)
            ]
            mean = sum(each.double().T @ each.double() for each in alike) / 544
            level = 1.0 if last else LEVELLED
            mean = (1 - level) * mean + level * mean.diagonal().mean() * torch.eye(len(mean))
            added = 1.5 * PSEUDO_TOKENS * x.shape[1]
            if own or not last:
                gram += added * mean
                assert shares.pop(name) == pytest.approx(added / (own + added))
        torch.testing.assert_close(mixed[name].gram().double(), gram, rtol=1e-4, atol=1e-3)
    assert shares == {}
    assert mixed["expert 5 output"].tokens == 0
    assert torch.isinf(mixed["expert 5 output"].view("range")["low"]).all()

    of_dense, seen = statistics_of(adapter, dense, {})
    assert shrink_experts(adapter, dense, of_dense, mixture) == {}
    for name, x in seen.items():
        torch.testing.assert_close(of_dense[name].gram(), x.T @ x, rtol=1e-5, atol=1e-4)


def test_nothing_is_shrunk_where_no_expert_saw_a_token():
    model, adapter = opened("qwen3_moe")
    block = adapter.named_blocks(model)[1][1]
    mixed, _ = statistics_of(adapter, block, dict.fromkeys("012345", 0))
    assert shrink_experts(adapter, block, mixed, {Prefix("en", 30): 1.0}) == {}


def test_what_experts_were_lent_is_recorded(quantize):
    quantized = quantize(without_tokens(tiny_model("qwen3_moe")), method="gptq", propagate="float")
    few = 0
    for name, seen in quantized.expert_tokens.items():
        for linear, channels in (("gate_proj", 64), ("down_proj", 32)):
            added, own = PSEUDO_TOKENS * channels, sum(seen.values())
            share = None if linear == "down_proj" and not own else added / (own + added)
            assert quantized.shrinkage.get(f"{name}.{linear}") == pytest.approx(share)
        few += 0 < sum(seen.values()) < PSEUDO_TOKENS * 64
    said = [line for line in quantized.summary().splitlines() if "fewer tokens" in line]
    assert bool(said) == bool(few)
    assert not any("experts" not in name for name in quantized.shrinkage)
    without = quantize(without_tokens(tiny_model("qwen3_moe")), method="rtn", propagate="float")
    assert without.shrinkage == {}


def test_experts_that_a_language_never_reached_are_counted(quantize):
    quantized = quantize(tiny_model("qwen2_moe"), method="gptq")
    tokens = quantized.expert_tokens
    assert any(seen["en"] and not seen["sw"] for seen in tokens.values())
    for name, seen in tokens.items():
        reached = {code for code, count in seen.items() if count}
        assert set(quantized.losses[f"{name}.up_proj"]) == reached
        assert set(quantized.losses[f"{name}.down_proj"]) == reached
    assert all(seen["en"] for seen in tokens.values())
    missed = sum(not seen["sw"] for seen in tokens.values())
    line = f"experts that saw no token of a language, of 24: sw {missed}"
    assert line in quantized.summary().splitlines()


def test_without_calibration_no_tokens_are_reported(quantize, tokenizer):
    quantized = mlcalib.quantize(
        tiny_model("mixtral"), method="rtn", group_size=32, symmetric=True, tokenizer=tokenizer
    )
    assert quantized.expert_tokens == {}
    assert "experts" not in quantized.summary()


def test_asymmetric_experts_are_refused_where_transformers_cannot_load_them(quantize):
    model = tiny_model("mixtral")
    model.forward = None
    with pytest.raises(ValueError, match=r"cannot load asymmetric experts .* format='dense'"):
        quantize(model, symmetric=False)


@pytest.mark.parametrize("name", MOE)
def test_routers_stay_as_they_are_and_readers_are_told(quantize, tmp_path, name):
    model = tiny_model(name)
    quantized = quantize(model, method="rtn")
    quantized.save(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    ignore = config["quantization_config"]["ignore"]
    mlp = "block_sparse_moe" if name == "mixtral" else "mlp"
    assert f"model.layers.1.{mlp}.gate" in ignore
    assert ("model.layers.1.mlp.shared_expert_gate" in ignore) == (name == "qwen2_moe")
    router = "model.layers.1.mlp.gate.weight"
    assert torch.equal(quantized.model.state_dict()[router], model.state_dict()[router])


def test_mixtral_is_saved_under_the_names_of_its_checkpoints(quantize, tmp_path):
    model = tiny_model("mixtral")
    model.save_pretrained(tmp_path / "transformers")
    quantize(model, method="rtn", format="dense").save(tmp_path / "out", "dense")
    names = []
    for folder in ("transformers", "out"):
        with safe_open(tmp_path / folder / "model.safetensors", framework="pt") as file:
            names.append(set(file.keys()))
    assert names[0] == names[1]
    assert "model.layers.0.block_sparse_moe.experts.3.w1.weight" in names[0]


def test_a_model_that_was_quantized_once_is_taken_again(quantize):
    first = quantize(tiny_model("mixtral"), method="rtn")
    assert isinstance(first.model.model.layers[0].mlp.experts, ExpertList)
    assert len(quantize(first.model, method="rtn", bits=8).linears) == len(first.linears)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"ignore": ["experts"]}, "mlp.experts.0.w1: floating point"),
        ({"overrides": {r"layers\.1\..*experts": {"bits": 8}}}, "8 bits, group_size 32"),
    ],
)
def test_experts_that_transformers_would_misread_are_refused(quantize, options, found):
    match = f"only if all are quantized on one grid; found .*{found}"
    with pytest.raises(ValueError, match=match):
        quantize(tiny_model("mixtral"), **options)
    quantize(tiny_model("mixtral"), method="rtn", format="dense", **options)


@pytest.mark.parametrize("name", MOE)
@pytest.mark.parametrize(
    "options",
    [
        {"ignore": ["self_attn"]},
        {"overrides": {"experts": {"bits": 8}}},
        {"overrides": {"self_attn": {"bits": 8}}},
    ],
    ids=str,
)
@torch.no_grad()
def test_overrides_that_leave_experts_alike_reload(quantize, tmp_path, name, options):
    quantized = quantize(tiny_model(name), method="rtn", **options)
    quantized.save(tmp_path / "out")
    assert mlcalib.check(tmp_path / "out").ok  # whatever the checkpoint calls the experts
    loaded = from_transformers(tmp_path / "out")
    loaded.set_experts_implementation("eager")
    difference = loaded(IDS).logits - quantized.model(IDS).logits
    assert difference.abs().max() < 1e-6
