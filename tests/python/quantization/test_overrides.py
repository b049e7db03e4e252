"""Linears that are skipped, or lie on another grid than most."""

import json
import re

import pytest
import torch
from foreign_reader import from_transformers
from small_models import tiny_llama
from small_pass import quantize_blocks

import mlcalib
from mlcalib.checkpoints import load_quantized
from mlcalib.checkpoints.stored_weights import StoredWeights
from mlcalib.common.layer_names import fused_groups, fused_name, patterns
from mlcalib.formats._layout import with_fused
from mlcalib.models import find_adapter
from mlcalib.quantization import block_statistics as flow
from mlcalib.quantization.open_source import open_source
from mlcalib.quantization.overrides import resolve
from mlcalib.quantizers import quantizers
from mlcalib.statistics import StatisticSet

RTN = quantizers.get("rtn")
BLOCK = [
    *(f"self_attn.{leaf}_proj" for leaf in "qkvo"),
    *(f"mlp.{leaf}_proj" for leaf in ("gate", "up", "down")),
]
NAMES = [f"model.layers.{block}.{name}" for block in range(12) for name in BLOCK]
EXPERTS = [
    f"model.layers.{block}.mlp.experts.{expert}.{leaf}_proj"
    for block in range(2)
    for expert in range(11)
    for leaf in ("gate", "up", "down")
]
IDS = {"en": [[(7 * i + j * j) % 360 for j in range(80)] for i in range(3)], "sw": [[5] * 40]}


def found(ignore=(), overrides=None, names=NAMES, **options):
    return resolve(RTN, options, ignore, overrides or {}, names)


def endings(names, *ends):
    return tuple(name for name in names if name.endswith(ends))


def test_a_pattern_is_searched_for_anywhere():
    (down,) = found(overrides={"down_proj": {"bits": 8}}, group_size=64)
    assert down.linears == endings(NAMES, "down_proj")
    assert (down.options.bits, down.options.group_size) == (8, 64)
    (first,) = found(ignore=[r"layers\.1\."])
    assert first.options is None
    assert first.linears == tuple(f"model.layers.1.{name}" for name in BLOCK)


def test_skips_come_first_then_the_first_that_matches():
    overrides = {r"\.1\.mlp": {"bits": 8}, "down_proj": {"group_size": 32}}
    skipped, second, third = found([r"layers\.0\."], overrides)
    assert len(skipped.linears) == 7
    assert second.linears == tuple(f"model.layers.1.{name}" for name in BLOCK if "mlp" in name)
    assert third.linears == endings(NAMES[14:], "down_proj")


@pytest.mark.parametrize(
    ("ignore", "overrides", "message"),
    [
        (["dwon"], {}, r"'dwon' matches none of the 84 linears; .*layers\.0\.self_attn\.q_proj, "),
        (["dwon"], {}, r"layers\.0\.mlp\.down_proj, model\.layers\.11\.mlp\.down_proj\.$"),
        (["("], {}, r"'\(' is not a regular expression: missing \)"),
        ([""], {}, "All 84 linears are skipped"),
        ("mlp", {}, r"give a list of patterns, such as \['mlp'\]"),
        (["mlp"], {"down": {"bits": 8}}, r"'down' changes nothing: .*layers\.0\.mlp\.down_proj"),
        ([], {"down": {"damp": 1}}, "'down' sets damp; expected one or more of bits, group_size, "),
        ([], {"down": {}}, "'down' sets nothing"),
        ([], {"down": {"bits": 9}}, "'down': bits is 9, expected 2 to 8"),
        ([], {"down": {"bits": "many"}}, "'down': .*valid integer"),
    ],
)
def test_what_is_refused(ignore, overrides, message):
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        found(ignore, overrides)


@pytest.mark.parametrize("names", [NAMES, EXPERTS + NAMES[:4]], ids=["dense", "experts"])
@pytest.mark.parametrize(
    "pattern", ["q_proj", "[qk]_proj", r"layers\.1\..*up_proj", "gate", r"\.1\.gate_proj", "down"]
)
@pytest.mark.parametrize("change", [None, {"bits": 8}], ids=["ignore", "bits"])
def test_fused_layers_stay_together_and_the_pattern_that_is_proposed_fits(change, pattern, names):
    """q, k, v and gate, up and the experts of a block, by an independent list of what is fused."""

    def ask(pattern):
        return found([] if change else [pattern], {pattern: change} if change else {}, names)

    hit = {name for name in names if re.search(pattern, name)}
    torn = any(
        hit.intersection(together) and not hit.issuperset(together)
        for block in range(12)
        for together in (
            endings(names, *(f".{block}.self_attn.{leaf}_proj" for leaf in "qkv")),
            endings(names, *(f".{block}.mlp.{leaf}_proj" for leaf in ("gate", "up"))),
            tuple(name for name in names if f".{block}.mlp.experts" in name),
        )
    )
    if not hit:
        return
    if not torn:
        assert set(ask(pattern)[0].linears) == hit
        return
    with pytest.raises(ValueError, match="vLLM and SGLang run these as one layer") as error:
        ask(pattern)
    assert min(hit) in str(error.value) or "more" in str(error.value)
    proposed = re.search(r"A pattern that fits: '(.*)'\.$", str(error.value))[1]
    (override,) = ask(proposed)
    assert hit < set(override.linears)


def test_fused_layers_may_be_taken_by_two_patterns_with_one_outcome():
    found(["q_proj", "[kv]_proj"])
    found(overrides={"q_proj": {"bits": 8}, "[kv]_proj": {"bits": 8}})
    found(overrides={"q_proj": {"bits": 4}}, bits=4)  # as all others
    with pytest.raises(ValueError, match="run these as one layer"):
        found(["q_proj"], {"[kv]_proj": {"bits": 8}})


def test_what_readers_fuse_of_low_rank_and_linear_attention():
    names = {
        "self_attn": ("q_a_proj", "kv_a_proj_with_mqa", "q_b_proj", "kv_b_proj", "o_proj"),
        "linear_attn": ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"),
        "feed_forward": ("w1", "w3", "w2"),
    }
    spelled = [f"layers.0.{parent}.{leaf}" for parent, leaves in names.items() for leaf in leaves]
    assert [[name.rpartition(".")[2] for name in group] for group in fused_groups(spelled)] == [
        ["q_a_proj", "kv_a_proj_with_mqa"],
        ["in_proj_qkv", "in_proj_z"],
        ["in_proj_b", "in_proj_a"],
        ["w1", "w3"],
    ]
    assert with_fused(spelled)[len(spelled) :] == [
        "layers.0.self_attn.fused_qkv_a_proj",
        "layers.0.linear_attn.in_proj_qkvz",
        "layers.0.linear_attn.in_proj_ba",
        "layers.0.feed_forward.w13",
    ]


def test_one_input_is_not_one_fused_layer():
    """In Cohere's block q, k, v, gate and up read one input; readers fuse two pairs of them."""
    assert [len(group) for group in fused_groups(NAMES[:7])] == [3, 2]


def test_kimi_linear_fuses_decays_with_queries():
    """Its other blocks have queries that nothing is fused with, or ordinary attention."""
    decays = [f"layers.0.self_attn.{leaf}_proj" for leaf in ("q", "k", "v", "b", "f_a", "f_b", "o")]
    usual = [f"layers.1.self_attn.{leaf}_proj" for leaf in ("q", "k", "v", "o")]
    alone = ["layers.2.self_attn.q_proj", "layers.2.self_attn.kv_b_proj"]
    first, second = fused_groups([*decays, *usual, *alone])
    assert (first, fused_name(first)) == (decays[:5], "layers.0.self_attn.in_proj_qkvgfab")
    assert (second, fused_name(second)) == (usual[:3], "layers.1.self_attn.qkv_proj")
    assert len(found(["self_attn.[qkv]_proj"])[0].linears) == 36


@pytest.mark.parametrize(
    "wanted",
    [
        NAMES,
        endings(NAMES, "down_proj"),
        NAMES[:14],
        [NAMES[0], NAMES[9]],
        EXPERTS[:33],
        EXPERTS[:4],
    ],
)
def test_patterns_match_just_the_names_given(wanted):
    everything = [
        *NAMES,
        *EXPERTS,
        "lm_head",
        "model.layers.0.mlp.down_proj_2",
        "xmodel.layers.0.q",
    ]
    made = patterns(wanted, everything)
    assert {n for n in everything if any(re.fullmatch(p, n) for p in made)} == set(wanted)
    if wanted == endings(NAMES, "down_proj"):
        assert made == [r"model\.layers\.\d+\.mlp\.down_proj"]


# On a model.


@pytest.fixture
def model():
    return tiny_llama(vocabulary=384)


@pytest.fixture
def quantize(model, tokenizer):
    calibration = mlcalib.calibration(None, corpus=IDS, seq_len=32)

    def quantize(model=model, **options):
        options = {"group_size": 32, "progress": False, "calibration": calibration, **options}
        return mlcalib.quantize(model, tokenizer=tokenizer, **options)

    return quantize


MIXED = {
    "ignore": [r"layers\.0\.self_attn\.[qkv]_proj", r"layers\.1\.mlp\.down_proj"],
    "overrides": {r"[qkv]_proj": {"bits": 8}, "o_proj": {"group_size": 16}},
    "symmetric": True,
}


@torch.no_grad()
def logits(model):
    return model(torch.arange(40)[None] * 3 % 128).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_a_mixed_checkpoint_is_the_model_in_memory(quantize, tmp_path, method, dtype):
    model = tiny_llama(vocabulary=384, dtype=dtype)
    quantized = quantize(model, method=method, **MIXED)
    quantized.save(tmp_path / "out")
    loaded = from_transformers(tmp_path / "out")
    assert torch.equal(logits(loaded), logits(quantized.model))
    back = load_quantized(tmp_path / "out")
    assert back.keys() == quantized.linears.keys()
    for name, linear in quantized.linears.items():
        assert torch.equal(back[name].codes, linear.codes)
        assert torch.equal(back[name].grid.scale, linear.grid.scale)
    for name in ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"):
        assert torch.equal(
            loaded.get_submodule(name).weight, model.get_submodule(name).weight
        )  # in floating point still
    specs = {name: linear.grid.spec for name, linear in quantized.linears.items()}
    assert specs["model.layers.1.self_attn.v_proj"].bits == 8
    assert specs["model.layers.0.self_attn.o_proj"].group_size == 16
    assert specs["model.layers.1.mlp.up_proj"].bits == 4


def test_skipped_linears_need_no_symmetric_grid(quantize, tmp_path):
    quantized = quantize(ignore=MIXED["ignore"])
    quantized.save(tmp_path / "out")
    loaded = from_transformers(tmp_path / "out")
    assert torch.equal(logits(loaded), logits(quantized.model))


def test_the_record_says_all(quantize, tmp_path):
    quantized = quantize(**MIXED)
    quantized.save(tmp_path / "out")
    record = json.loads((tmp_path / "out" / "mlcalib.json").read_text())
    qkv, down, bits, size = record["recipe"]["overrides"]
    assert qkv["options"] is down["options"] is None
    assert down["linears"] == ["model.layers.1.mlp.down_proj"]
    assert bits["pattern"] == "[qkv]_proj"
    assert bits["options"] == {"bits": 8, "group_size": 32, "symmetric": True}
    assert len(bits["linears"]) == 3
    assert size["options"]["group_size"] == 16
    assert "model.layers.1.mlp.down_proj" not in record["layers"]
    assert "4 linears left in floating point, 5 with options of their own" in quantized.summary()


def test_linears_without_override_are_solved_as_ever(quantize):
    """Propagation is float: the errors of other linears must not matter."""
    plain = quantize(propagate="float", symmetric=True)
    mixed = quantize(propagate="float", **MIXED)
    eight = quantize(propagate="float", symmetric=True, bits=8)
    for name, linear in mixed.linears.items():
        if linear.grid.spec.group_size == 32:
            same = plain if linear.grid.spec.bits == 4 else eight
            assert torch.equal(linear.codes, same.linears[name].codes)
            assert mixed.losses[name] == same.losses[name]


def test_linears_of_one_input_are_solved_by_their_own_quantizers(model):
    """As in Cohere's blocks, where gate and up read what q, k and v read."""
    calibration = mlcalib.calibration(None, corpus=IDS, seq_len=32)
    gptq = quantizers.get("gptq")
    four, eight = (gptq(gptq.Options(group_size=32, bits=bits), torch.float32) for bits in (4, 8))
    name = "model.layers.0.self_attn.{}_proj"
    exceptions = {name.format("q"): eight, name.format("k"): None}

    def solve(quantizer, **options):
        return quantize_blocks(model, quantizer, calibration, propagate="float", **options).linears

    mixed, all_four, all_eight = solve(four, exceptions=exceptions), solve(four), solve(eight)
    assert name.format("k") not in mixed
    assert torch.equal(mixed[name.format("q")].codes, all_eight[name.format("q")].codes)
    for other, linear in mixed.items():
        if other not in exceptions:
            assert torch.equal(linear.codes, all_four[other].codes)


@pytest.mark.parametrize("propagate", ["float", "quantized"])
def test_inputs_that_only_skipped_linears_read_have_no_statistics(quantize, monkeypatch, propagate):
    made = []

    class Counted(StatisticSet):
        def __init__(self, names, channels):
            made.append(channels)
            super().__init__(names, channels)

    monkeypatch.setattr(flow, "StatisticSet", Counted)
    quantized = quantize(propagate=propagate, ignore=[r"layers\.0\.self_attn", r"layers\.1\."])
    assert made == [64, 128]  # the two inputs of the first block's MLP
    assert len(quantized.linears) == 3


def test_quantized_propagation_goes_through_skipped_blocks(quantize, model):
    """The last block sees the same, whether the one before is skipped or quantized to itself."""
    skipped = quantize(ignore=[r"layers\.0\."])
    alone = quantize(propagate="float")
    name = "model.layers.1.mlp.down_proj"
    assert not torch.equal(skipped.linears[name].codes, quantize().linears[name].codes)
    first = "model.layers.1.self_attn.q_proj"  # nothing quantized comes before it
    assert torch.equal(skipped.linears[first].codes, alone.linears[first].codes)
    assert torch.equal(
        skipped.model.model.layers[0].mlp.down_proj.weight,
        model.model.layers[0].mlp.down_proj.weight,
    )


@pytest.fixture
def folder(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_torn_fused_layers_are_refused_before_weights_are_read(quantize, folder, monkeypatch):
    monkeypatch.setattr(StoredWeights, "read", None)
    with pytest.raises(ValueError, match=r"'q_proj' takes model\.layers\.0\.self_attn\.q"):
        quantize(folder, ignore=["q_proj"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"overrides": {"down": {"bits": 8}}},
            r"only if all are symmetric.*found 4 bits, group_size 32, asymmetric "
            r"\(model\.layers\.0\.self_attn\.q_proj\), 8 bits, .*--symmetric.*--format dense",
        ),
        (
            {"overrides": {"down": {"bits": 5}}, "symmetric": True, "format": "gptq"},
            "gptq holds 2, 3, 4 or 8 bits, not 5",
        ),
        (
            {"overrides": {"gate|up": {"group_size": 48}}, "symmetric": True},
            r"group_size 48 does not divide 64 input channels of model\.layers\.0\.mlp\.gate_proj",
        ),
    ],
)
def test_grids_that_a_checkpoint_cannot_hold_are_refused_before_any_forward(
    quantize, model, options, message
):
    model.forward = None
    with pytest.raises(ValueError, match=message):
        quantize(**options)


def test_a_dense_checkpoint_holds_any_mixture(quantize, tmp_path):
    overrides = {"down": {"bits": 3}, "gate|up": {"group_size": 48, "symmetric": True}}
    quantized = quantize(overrides=overrides, format="dense")
    quantized.save(tmp_path / "out", "dense")
    loaded = from_transformers(tmp_path / "out")
    assert torch.equal(logits(loaded), logits(quantized.model))
    assert quantized.linears["model.layers.1.mlp.down_proj"].codes.max() == 7
    with pytest.raises(ValueError, match="group_size 48 does not divide 64"):
        quantized.save(tmp_path / "packed", "compressed-tensors")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# As vLLM reads the config: vllm/model_executor/layers/quantization/compressed_tensors/utils.py.
PARTS = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


def vllm_group(section, layer, kind):
    """Name the config group that vLLM takes for a layer of its own: None where it is ignored.

    A target is tried on the name, then on the class (a part of its name is enough), then on all
    parts of a fused layer.
    """
    targets = {t: key for key, group in section["config_groups"].items() for t in group["targets"]}

    def match(name, target):
        return re.match(target[3:], name) if target.startswith("re:") else target == name

    stem, _, leaf = layer.rpartition(".")
    parts = [f"{stem}.{part}" for part in PARTS.get(leaf, [leaf])]
    ignored = {any(match(part, target) for target in section["ignore"]) for part in parts}
    assert len(ignored) == 1, f"vLLM refuses {layer}"
    if ignored == {True}:
        return None
    for target, key in targets.items():
        if match(layer, target) or (":" not in target and target.lower() in kind.lower()):
            return key
    found = [next((k for t, k in targets.items() if match(part, t)), None) for part in parts]
    assert len(set(found)) == 1, f"vLLM would read the parts of {layer} by one group: {found}"
    return found[0]


@pytest.mark.parametrize("options", [MIXED, {"symmetric": True}, {"ignore": MIXED["ignore"]}])
def test_vllm_finds_the_grid_of_each_layer(quantize, tmp_path, options):
    quantized = quantize(**options)
    quantized.save(tmp_path / "out")
    section = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    for block in range(2):
        for layer, kind in [
            ("self_attn.qkv_proj", "QKVParallelLinear"),
            ("self_attn.o_proj", "RowParallelLinear"),
            ("mlp.gate_up_proj", "MergedColumnParallelLinear"),
            ("mlp.down_proj", "RowParallelLinear"),
        ]:
            name = f"model.layers.{block}.{layer}"
            group = vllm_group(section, name, kind)
            leaf = layer.rpartition(".")[2]
            first = name.replace(leaf, PARTS.get(leaf, [leaf])[0])
            if first not in quantized.linears:
                assert group is None
                continue
            spec = quantized.linears[first].grid.spec
            weights = section["config_groups"][group]["weights"]
            assert (weights["num_bits"], weights["group_size"]) == (spec.bits, spec.group_size)
    assert ("dequantize" in section) is not options.get("symmetric", False)


def test_the_names_in_a_folder_are_those_of_the_loaded_model(folder, model):
    names = [name for name, _ in find_adapter("LlamaForCausalLM").named_linears(model)]
    for opened in (open_source(folder, "auto"), open_source(model, "auto")):
        assert [name for name, _ in opened.adapter.named_linears(opened.model)] == names
