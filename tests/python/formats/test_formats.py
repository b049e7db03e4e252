import errno
import json
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from hypothesis import given
from hypothesis import strategies as st

from mlcalib._core import Grid, GridSpec, QuantizedLinear
from mlcalib.common.files import atomic_folder, check_output
from mlcalib.formats import formats

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PACKED = formats.get("compressed-tensors")()


@st.composite
def quantized_linears(draw):
    """Any linear that compressed-tensors holds: odd sizes, short words, extreme zero points."""
    bits = draw(st.integers(2, 8))
    size = draw(st.sampled_from([1, 2, 3, 8, 24, 32]))
    groups = draw(st.integers(1, 4))
    rows = draw(st.integers(1, 40))
    symmetric = draw(st.booleans())
    spec = GridSpec(
        bits,
        draw(st.sampled_from([size, -1])) if groups == 1 else size,
        symmetric,
        scale_dtype=draw(st.sampled_from(DTYPES)),
    )
    return random_linear(spec, rows, size * groups, seed=draw(st.integers(0, 99)))


def random_linear(spec, rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    levels, shape = 2**spec.bits, (rows, spec.groups(columns))
    codes = torch.randint(levels, (rows, columns), generator=generator, dtype=torch.uint8)
    scale = (torch.rand(shape, generator=generator) + 0.01).to(spec.scale_dtype).float()
    zero = torch.randint(levels, shape, generator=generator, dtype=torch.uint8)
    if spec.symmetric:
        zero.fill_(levels // 2)
    return QuantizedLinear(codes, Grid(scale, zero, spec))


def test_names():
    assert formats.names() == [
        "awq",
        "bitsandbytes",
        "bitsandbytes-double",
        "compressed-tensors",
        "compressed-tensors-fp8",
        "compressed-tensors-fp8-static",
        "compressed-tensors-int8",
        "compressed-tensors-mxfp4",
        "compressed-tensors-nvfp4",
        "compressed-tensors-nvfp4-w4a4",
        "dense",
        "gguf",
        "gptq",
        "gptq-v2",
    ]


@given(quantized_linears())
def test_unpack_returns_what_was_packed(linear):
    tensors = PACKED.pack("a.b", linear)
    back = PACKED.unpack("a.b", tensors, linear.grid.spec)
    assert torch.equal(back.codes, linear.codes)
    assert torch.equal(back.grid.scale, linear.grid.scale)
    assert torch.equal(back.grid.zero, linear.grid.zero)


@given(quantized_linears())
def test_the_compressed_tensors_library_reads_what_was_packed(linear):
    spec = linear.grid.spec
    config = PACKED.quantization_config({"a": spec}, "activation", ["lm_head"])
    scheme = QuantizationConfig.model_validate(config).config_groups["group_0"]
    state = {name.removeprefix("a."): tensor for name, tensor in PACKED.pack("a", linear).items()}
    library = BaseCompressor.get_value_from_registry("pack-quantized")
    assert library.can_compress(torch.nn.Linear, scheme)
    weight = library.decompress(state, scheme)["weight"]
    assert torch.equal(weight, linear.dequantize().to(spec.scale_dtype))


@given(quantized_linears(), st.sampled_from(["activation", "natural"]))
def test_the_config_describes_the_grid(linear, order):
    spec = linear.grid.spec
    config = json.loads(json.dumps(PACKED.quantization_config({"a": spec}, order, [])))
    back = PACKED.read_specs(config, ["a"], spec.scale_dtype)["a"]
    assert (back.bits, back.group_size, back.symmetric, back.scale_dtype) == (
        spec.bits,
        spec.group_size,
        spec.symmetric,
        spec.scale_dtype,
    )
    # Without the key, transformers 5.23 with compressed-tensors 0.18 to 0.20 fails to load zeros.
    assert config.get("dequantize", False) is not spec.symmetric


def test_activation_order_is_told():
    (natural, static) = (
        PACKED.quantization_config({"a": GridSpec()}, order, [])["config_groups"]["group_0"][
            "weights"
        ]
        for order in ("natural", "activation")
    )
    assert natural["actorder"] is None
    assert static["actorder"] == "static"


def check(spec, shapes):
    PACKED.check(dict.fromkeys(shapes, spec), shapes)


def test_check_says_which_layers_do_not_fit_and_what_would():
    linears = {f"model.layers.{i}.self_attn.q_proj": (576, 576) for i in range(180)}
    linears |= {f"model.layers.{i}.mlp.down_proj": (576, 1536) for i in range(30)}
    with pytest.raises(ValueError) as error:
        check(GridSpec(4, 128), linears)
    assert str(error.value) == (
        "group_size 128 does not divide 576 input channels of model.layers.0.self_attn.q_proj "
        "(and 179 more); use 64, 96, 192 or -1"
    )
    for size in (64, 96, 192, -1):
        check(GridSpec(4, size), linears)


def test_check_names_one_layer_of_each_width():
    with pytest.raises(ValueError, match=r"96 .* of a, nor 100 .* of b; use 4 or -1$"):
        check(GridSpec(4, 64), {"a": (8, 96), "b": (8, 100)})
    with pytest.raises(ValueError, match=r"use -1$"):
        check(GridSpec(4, 64), {"a": (8, 96), "b": (8, 97)})


def test_dense_holds_any_grid_and_reads_none_back():
    dense = formats.get("dense")()
    linear = random_linear(GridSpec(3, 5, scale_dtype=torch.bfloat16), 3, 7)
    dense.check({"a": linear.grid.spec}, {"a": (3, 7)})
    tensors = dense.pack("a", linear)
    assert torch.equal(tensors["a.weight"], linear.dequantize().bfloat16())
    assert dense.quantization_config({"a": linear.grid.spec}, "natural", []) is None
    with pytest.raises(NotImplementedError):
        dense.unpack("a", tensors, linear.grid.spec)
    with pytest.raises(NotImplementedError):
        dense.read_specs({}, ["a"], torch.float32)


@pytest.mark.parametrize("name", ["compressed-tensors", "dense"])
def test_scales_that_the_checkpoint_cannot_hold_are_refused(name):
    spec = GridSpec(4, -1, scale_dtype=torch.float16)
    grid = Grid(torch.full((2, 1), 1e6), torch.zeros(2, 1, dtype=torch.uint8), spec)
    linear = QuantizedLinear(torch.ones(2, 8, dtype=torch.uint8), grid)
    with pytest.raises(ValueError, match=r"a\.b: .*finite"):
        formats.get(name)().pack("a.b", linear)


def test_a_symmetric_grid_off_centre_is_refused():
    spec = GridSpec(4, -1, symmetric=True)
    grid = Grid(torch.ones(2, 1), torch.full((2, 1), 7, dtype=torch.uint8), spec)
    with pytest.raises(ValueError, match=r"a\.b: .*not all 8"):
        PACKED.pack("a.b", QuantizedLinear(torch.ones(2, 8, dtype=torch.uint8), grid))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8])
def test_other_model_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match="load it in float32"):
        PACKED.scale_dtype(dtype)


def test_unpack_says_which_tensor_is_missing_or_misshapen():
    spec = GridSpec(4, 8)
    tensors = PACKED.pack("a", random_linear(spec, 8, 16))
    for name, tensor in tensors.items():
        with pytest.raises(ValueError, match=f"no tensor {name}"):
            PACKED.unpack("a", {k: v for k, v in tensors.items() if k != name}, spec)
        with pytest.raises(ValueError, match=name):
            PACKED.unpack("a", tensors | {name: tensor[:-1]}, spec)
        with pytest.raises(ValueError, match=name):
            PACKED.unpack("a", tensors | {name: tensor.double()}, spec)


def edited(path, value):
    """A section of an asymmetric 4 bit checkpoint with one entry changed."""
    config = PACKED.quantization_config({"a": GridSpec(4, 8)}, "natural", [])
    *parents, last = path.split(".")
    section = config
    for key in parents:
        section = section[key]
    section[last] = value
    return config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("config_groups", {}, "no group for a, which has codes"),
        ("config_groups", [], "does not describe groups"),
        ("config_groups.group_0", {"targets": ["Linear"]}, "does not describe groups"),
        ("config_groups.group_0.targets", ["Embedding", "b", "re:b"], "no group for a, which"),
        ("config_groups.group_1", {}, "does not describe groups"),
        ("config_groups.group_0.format", "int-quantized", "expected pack-quantized"),
        ("config_groups.group_0.weights.num_bits", 9, "expected pack-quantized"),
        ("config_groups.group_0.weights.type", "float", "expected pack-quantized"),
        ("config_groups.group_0.weights.strategy", "tensor", "strategy 'tensor'"),
        ("config_groups.group_0.weights.group_size", None, "group_size None"),
        ("config_groups.group_0.weights.actorder", "group", "actorder 'group'"),
    ],
)
def test_sections_that_cannot_be_read_are_refused(path, value, message):
    with pytest.raises(ValueError, match=message):
        PACKED.read_specs(edited(path, value), ["a"], torch.float32)


def test_groups_are_found_by_name_then_by_pattern_then_by_class():
    """The order of compressed-tensors, whatever the order of the groups."""
    config = edited("ignore", [])
    group = config["config_groups"].pop("group_0")
    targets = {4: ["Linear"], 8: ["re:.*mlp"], 16: ["a.mlp.up", "a.q"]}
    for size, names in targets.items():
        weights = group["weights"] | {"group_size": size}
        config["config_groups"][str(size)] = group | {"targets": names, "weights": weights}
    specs = PACKED.read_specs(config, ["a.q", "a.k", "a.mlp.up", "a.mlp.down"], torch.float32)
    assert {name: spec.group_size for name, spec in specs.items()} == {
        "a.q": 16,
        "a.k": 4,
        "a.mlp.up": 16,
        "a.mlp.down": 8,
    }


def test_an_atomic_folder_appears_whole(tmp_path):
    out = tmp_path / "deep" / "er" / "out"
    with atomic_folder(out) as folder:
        assert folder.parent == out.parent
        assert folder.name.startswith(".out.partial-")
        (folder / "a").write_text("a")
        assert not out.exists()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "a").read_text() == "a"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_nothing(tmp_path, error):
    def write():
        with atomic_folder(tmp_path / "deep" / "out") as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "a").write_text("a")
            raise error

    with pytest.raises(error):
        write()
    assert list(tmp_path.iterdir()) == []


def test_parents_that_another_run_uses_are_kept(tmp_path):
    def write():
        with atomic_folder(tmp_path / "deep" / "out"):
            (tmp_path / "deep" / "other").write_text("")
            raise ValueError

    with pytest.raises(ValueError):
        write()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["other"]


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("a")
    assert (tmp_path / "out" / "a").exists()


def test_existing_output_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("")
    for name in ("file", "full"):
        with pytest.raises(FileExistsError, match="exists and is not empty"):
            check_output(tmp_path / name)
    with pytest.raises(NotADirectoryError, match="give another path"):
        check_output(tmp_path / "file" / "out")
    assert (tmp_path / "full" / "a").exists()


def test_a_leftover_of_a_killed_run_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("os.getpid", lambda: 7)
    (tmp_path / ".out.partial-7").mkdir()
    with pytest.raises(FileExistsError, match=r"partial-7 is there: .*remove it"):
        check_output(tmp_path / "out")


def test_a_place_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def refuse(self, *_, **__):
        raise OSError(errno.EACCES, "Permission denied", str(self))

    check_output(tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(PermissionError, match=r"cannot write .*Permission denied; give another"):
        check_output(tmp_path / "deep" / "out")
