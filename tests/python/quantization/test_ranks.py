"""Over one, two and three processes: nearly the same codes, and of as many the same bytes."""

import filecmp
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rank_scenarios import LEAF, LONG, SIZES
from small_models import tiny_llama, tiny_model

import mlcalib
from mlcalib.common.ranks import balanced
from mlcalib.models import find_adapter
from mlcalib.models.experts import unfuse
from mlcalib.quantization.expert_rows import expert_owners
from mlcalib.quantization.shares import parts_of

HERE = Path(__file__).resolve().parent.parent


def torchrun(count, *command, **given):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    return subprocess.Popen(
        [*start, *map(str, command)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **given,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer):
    """The folder in which all scenarios have run, and what torchrun printed."""
    folder = tmp_path_factory.mktemp("ranks")
    models = {"llama": tiny_llama(vocabulary=384, layers=4, hidden=96, intermediate=192)}
    models["mixtral"] = tiny_model("mixtral", vocabulary=384)
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    write_study(folder)
    process = torchrun(3, HERE / "rank_scenarios.py", folder)
    printed = process.communicate(timeout=300)[0]
    assert (folder / "told-2.json").is_file(), printed
    return folder, printed


def write_study(folder):
    for code, count in {"en": 90, "sw": 60}.items():
        (folder / "text" / code).mkdir(parents=True)
        for split in ("calib", "eval"):
            lines = [f"{split} {code} {n} {n * n}" for n in range(count)]
            (folder / "text" / code / f"{split}.txt").write_text("\n".join(lines))
    spec = {
        "name": "test",
        "models": [str(folder / "mixtral")],
        "format": "dense",
        "corpus": f"files:{folder / 'text'}",
        "tokens": 300,
        "seq_len": 32,
        "settings": ["en", {"languages": "en,sw", "tokens": [150, 300]}],
        "quantizers": [
            {"method": "gptq", "group_size": 32},
            {"method": "awq", "group_size": 32, "propagate": "quantized"},
        ],
        "evaluation": {"languages": "en,sw", "tokens": 100, "fidelity": True},
        "layers": {"languages": "en,sw", "tokens": 64},
    }
    (folder / "study.json").write_text(json.dumps(spec))


def record(folder):
    return json.loads((folder / "mlcalib.json").read_text())


def losses(record):
    return [
        loss for layer in record["layers"].values() for loss in layer["loss_per_token"].values()
    ]


def same_weights(a, b):
    return filecmp.cmp(a / "model.safetensors", b / "model.safetensors", shallow=False)


@pytest.mark.parametrize(
    ("name", "size"), [(name, size) for name, sizes in SIZES.items() for size in sizes[1:]]
)
def test_codes_are_those_of_one_bit_for_bit(name, size, made):
    one, several = (made[0] / f"{name}-{count}" for count in (1, size))
    assert same_weights(one, several)
    alone, together = record(one), record(several)
    assert losses(together) == pytest.approx(losses(alone), rel=1e-6)
    divergences = [
        [layer.get("divergence") for layer in each["layers"].values()] for each in (alone, together)
    ]
    assert divergences[0] == divergences[1]
    assert any(divergences[0]) == (name.startswith("fisher") and name != "fisher-text")
    blocks = 2 if "mixtral" in name else 4
    assert together["made_with"] == {
        f"model.layers.{i}": {"ranks": size, "threads": 1} for i in range(blocks)
    }
    for each in (alone, together):
        assert not list(made[0].glob(f".{name}-*"))
        for layer in each["layers"].values():
            del layer["loss_per_token"]  # whose rows add up in another order
        for key in ("seconds", "made_with"):
            each.pop(key, None)
    assert alone == together


@pytest.mark.parametrize("size", [1, 2, 3])
def test_diagonals_are_named_and_change_no_code(size, made):
    whole, short = (made[0] / f"{name}-{size}" for name in ("mixtral", "mixtral-diagonal"))
    assert same_weights(whole, short)
    kept = [record(folder) for folder in (whole, short)]
    for each, statistic in zip(kept, ("gram", "diagonal"), strict=True):
        found = {name: layer.get("statistics") for name, layer in each["layers"].items()}
        assert found == {name: statistic if "experts" in name else None for name in found}
    assert not any("diagonals" in line for line in kept[0]["warnings"])
    assert any("24 linears of experts are those of the diagonals" in w for w in kept[1]["warnings"])


def test_as_many_ranks_give_the_same_bytes(made):
    folders = [made[0] / name for name in ("gptq-2", "gptq-2-again")]
    assert same_weights(*folders)
    records = [record(folder) for folder in folders]
    for each in records:
        del each["seconds"]
    assert records[0] == records[1]


def test_one_rank_is_a_run_without_ranks(made, tmp_path, monkeypatch):
    monkeypatch.setattr("mlcalib.statistics.pairwise.LEAF_TOKENS", LEAF)
    text = mlcalib.calibration(None, corpus=LONG, seq_len=32)
    given = {"group_size": 32, "progress": False}
    mlcalib.quantize_checkpoint(made[0] / "llama", tmp_path / "a", text, **given)
    assert same_weights(tmp_path / "a", made[0] / "gptq-1")


def test_ranks_that_were_started_with_different_options_are_refused(made):
    for rank in range(3):
        told = json.loads((made[0] / f"told-{rank}.json").read_text())
        assert told["unlike"].startswith(
            "rank 0 and rank 1 do not do the same: recipe.options.damp is 0.01 and 0.02."
        )
    assert not (made[0] / "unlike").exists()


def test_another_number_of_ranks_goes_on_and_is_recorded(made):
    made_with = record(made[0] / "resumed")["made_with"]
    assert [each["ranks"] for each in made_with.values()] == [3, 3, 1, 1]
    assert same_weights(made[0] / "gptq-1", made[0] / "resumed")


def test_a_rank_that_fails_is_named_with_its_error(made):
    assert "rank 1 (process" in made[1]
    assert "ended with OSError: [Errno 28] No space left on device" in made[1]


def test_a_killed_rank_ends_the_others_and_the_run_goes_on(saved, tmp_path):
    source = saved(tiny_llama(vocabulary=384, layers=40, hidden=128, intermediate=256))
    text = tmp_path / "text"
    for code in ("en", "sw"):
        (text / code).mkdir(parents=True)
        lines = "\n".join(f"{code} {n} {n * n}" for n in range(900))
        (text / code / "calib.txt").write_text(lines)
    given = ["-m", "mlcalib", "quantize", source, "--out", tmp_path / "out", "--group-size", "32"]
    given += ["--corpus", f"files:{text}", "--languages", "en,sw", "--tokens", "4096"]
    given += ["--seq-len", "64", "--hidden-states", "disk"]
    process = torchrun(2, *given)
    blocks = tmp_path / ".out.parts/blocks"
    while len(list(blocks.glob("*.safetensors"))) < 2:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    os.kill(rank_of(process.pid, 1), signal.SIGKILL)
    killed = time.monotonic()
    printed = process.communicate(timeout=60)[0]
    assert time.monotonic() - killed < 60
    assert process.returncode != 0
    assert "SIGKILL" in printed
    finished = {path: path.stat().st_mtime_ns for path in blocks.glob("*.safetensors")}
    assert 2 <= len(finished) < 40
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *map(str, given)], env=environment, check=True, timeout=120)
    made_with = record(tmp_path / "out")["made_with"]
    assert [each["ranks"] for each in made_with.values()] == [2] * len(finished) + [1] * (
        40 - len(finished)
    )


def rank_of(parent, rank):
    """Return the process of a rank that torchrun started."""
    for status in Path("/proc").glob("[0-9]*/environ"):
        try:
            if (
                f"RANK={rank}".encode() in status.read_bytes().split(b"\0")
                and str(parent)
                == ((status.parent / "stat").read_text().rpartition(")")[2].split()[1])
            ):
                return int(status.parent.name)
        except OSError:
            continue
    raise AssertionError(f"no rank {rank} below {parent}")


def test_a_study_is_that_of_one(made):
    one, two = (made[0] / f"study-{size}/mixtral" for size in (1, 2))
    names = sorted(path.name for path in (one / "checkpoints").iterdir())
    assert len(names) == 6
    for name in names:
        assert same_weights(one / "checkpoints" / name, two / "checkpoints" / name)
    for name in [*names, "float"]:
        alone, together = (
            json.loads((each / f"evaluations/{name}.json").read_text()) for each in (one, two)
        )
        for each in (alone, together):
            del each["seconds"], each["inputs"]
        assert alone == together
    alone, together = (json.loads((each / "layers.json").read_text()) for each in (one, two))
    assert alone == together
    assert not (two / "hidden").exists()


@pytest.mark.parametrize("size", [1, 2, 5, 64])
@pytest.mark.parametrize(
    "shapes", [[(960, 576), (576, 576), (3072, 576), (576, 1536)], [(10, 7)], [(96, 64)] * 300, []]
)
def test_every_row_is_solved_once(shapes, size):
    parts = parts_of(shapes, size)
    for task, (rows, _) in enumerate(shapes):
        own = [part for part in parts if part.task == task]
        assert [part.first for part in own] == [0, *(part.last for part in own[:-1])]
        assert own[-1].last == rows
        assert len({part.owner for part in own}) == len(own) <= size
        assert all(part.first < part.last for part in own)


def test_what_must_stay_whole_is_not_split():
    shapes = [(960, 576), (576, 1536)]
    assert len(parts_of(shapes, 8)) > 2
    assert [part.task for part in parts_of(shapes, 8, {0, 1})] == [0, 1]


def test_shares_are_even():
    shapes = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)]
    alone = sum(c**3 / 3 + r * c**2 for r, c in shapes)
    load = [0.0] * 4
    for part in parts_of(shapes, 4):
        rows, channels = part.last - part.first, shapes[part.task][1]
        load[part.owner] += channels**3 / 3 + rows * channels**2
    assert max(load) < alone / 2
    owners = balanced([1.0] * 256, 8)
    assert {owners.count(rank) for rank in range(8)} == {32}


def test_experts_are_solved_by_who_has_their_statistics():
    shapes = [(960, 576), *[(1024, 576), (576, 512)] * 4]
    owners = {index: (index - 1) // 2 % 3 for index in range(1, len(shapes))}
    parts = parts_of(shapes, 3, owners=owners)
    experts = {part.task: part.owner for part in parts if part.task in owners}
    assert experts == owners
    assert sum(part.last - part.first for part in parts if part.task == 0) == 960


def test_experts_are_shared_out_in_order():
    model = tiny_model("mixtral", vocabulary=384)
    adapter = find_adapter("MixtralForCausalLM")
    unfuse(model, adapter)
    block = model.model.layers[0]
    names = [name for name in adapter.linears_of(block) if name.startswith("expert")]
    assert list(expert_owners(adapter, block, 1).items()) == [(name, 0) for name in names]
    of_three = expert_owners(adapter, block, 3)
    assert list(of_three.values()) == [0, 0, 0, 0, 1, 1, 2, 2]
    assert set(expert_owners(adapter, block, 9).values()) == {0, 2, 4, 6}
