"""Every example runs as its header says, on a tiny model, offline."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_models import tiny_llama

from mlcalib.results.rows import read_rows

EXAMPLES = Path(__file__).parents[3] / "examples"
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_llama(vocabulary=384).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(*command, **variables):
    env = {**os.environ, "HF_HUB_OFFLINE": "1", **{k: str(v) for k, v in variables.items()}}
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=env, check=False
    )


def test_custom_quantizer(model):
    done = run(sys.executable, EXAMPLES / "custom_quantizer.py", model)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[1:]
    losses = {
        tuple(line.partition("  en")[0].split()): re.findall(r"(?:en|sw|zh) +(\S+)", line)
        for line in lines
    }
    assert list(losses) == [("rtn",), ("clipped", "1.0"), ("clipped", "0.99"), ("clipped", "0.95")]
    # Ranges that leave nothing out are those of rtn.
    assert losses["clipped", "1.0"] == losses["rtn",] != losses["clipped", "0.95"]
    assert all(len(each) == 3 for each in losses.values())


def test_custom_quantizer_from_an_entry_point(model, tmp_path):
    """As a package would bring it: found by name by the command line, with its options."""
    info = tmp_path / "site" / "clipped-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: clipped\nVersion: 1.0\n")
    point = "clipped = clipped:ClippedQuantizer"
    (info / "entry_points.txt").write_text(f"[mlcalib.quantizers]\n{point}\n")
    example = (EXAMPLES / "custom_quantizer.py").read_text()
    (tmp_path / "site" / "clipped.py").write_text(example)
    out = tmp_path / "out"
    done = run(
        BIN / "mlcalib", "quantize", model, "--out", out, "--method", "clipped", "--symmetric",
        "--group-size", 32, "--option", "keep=0.97",
        PYTHONPATH=tmp_path / "site",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "mlcalib.json").read_text())
    assert record["recipe"]["method"] == "clipped"
    assert record["recipe"]["options"]["keep"] == 0.97
    assert record["calibration"] is None  # it needs none


def test_custom_languages(model):
    done = run(sys.executable, EXAMPLES / "custom_languages.py", model)
    assert done.returncode == 0, done.stderr
    assert "set 'custom_languages': {'sw': 0.4, 'ha': 0.3, 'yo': 0.2, 'en': 0.1}" in done.stdout
    rows = {
        line.split()[0]: {
            code: float(ratio) for code, ratio in re.findall(r"(\w\w) +([\d.]+)", line)
        }
        for line in done.stdout.partition("÷")[2].splitlines()[1:]
    }
    assert list(rows) == ["equal", "custom_languages", "en"]
    assert set(rows["equal"].values()) == {1.0}
    # Tokens buy precision: the language with more of them than its equal share gains.
    assert rows["custom_languages"]["sw"] < 1 < rows["custom_languages"]["en"]
    assert rows["en"]["en"] < 1 < min(rows["en"][code] for code in ("sw", "ha", "yo"))


SBATCH = EXAMPLES / "slurm" / "quantize.sbatch"
RANKS_SBATCH = EXAMPLES / "slurm" / "ranks.sbatch"


@pytest.fixture
def cluster(model, tmp_path):
    """What SLURM gives a task of the array; `srun` runs its command here and writes it down."""
    shim = tmp_path / "bin" / "srun"
    shim.parent.mkdir()
    shim.write_text(
        '#!/usr/bin/env bash\necho "$@" >> "$SRUN_LOG"\n'
        'while [[ $1 == --* ]]; do shift; done\nexec "$@"\n'
    )
    shim.chmod(0o755)
    return {
        "PATH": f"{shim.parent}:{BIN}:{os.environ['PATH']}",
        "SRUN_LOG": tmp_path / "srun.log",
        "SLURM_JOB_ID": 7,
        "SLURM_ARRAY_JOB_ID": 7,
        "SLURM_CPUS_PER_TASK": 1,
        "MODEL": model,
        "OUT": tmp_path / "out",
        "TOKENS": 200,
        "SEQ_LEN": 32,
        "EVAL_TOKENS": 64,
        "EVAL_LANGUAGES": "en,sw",
        "QUANTIZE_OPTIONS": "--method gptq --group-size 32",
        "SETS": f"en:0.75,sw:0.25 {EXAMPLES / 'custom_languages.yaml'}",
    }


def test_slurm_task(cluster):
    done = run("bash", SBATCH, SLURM_ARRAY_TASK_ID=1, **cluster)
    assert done.returncode == 0, done.stderr
    out = cluster["OUT"]
    assert {path.name for path in out.iterdir()} == {
        "custom_languages",
        "custom_languages.jsonl",
        "custom_languages.items",
    }
    record = json.loads((out / "custom_languages" / "mlcalib.json").read_text())
    assert record["calibration"]["set"] == "custom_languages"
    assert record["threads"] == 1
    rows = read_rows(out / "custom_languages.jsonl")
    assert {(row.method, row.language) for row in rows} == {
        (method, code) for method in ("float", "gptq") for code in ("en", "sw")
    }
    assert "Perplexity" in (out / "custom_languages" / "README.md").read_text()
    steps = cluster["SRUN_LOG"].read_text().splitlines()
    assert [step.split()[:4] for step in steps] == [
        ["--cpus-per-task=1", "--cpu-bind=cores", "mlcalib", command]
        for command in ("quantize", "evaluate")
    ]
    # Requeued after it was done: nothing runs again.
    assert run("bash", SBATCH, SLURM_ARRAY_TASK_ID=1, **cluster).returncode == 0
    assert len(cluster["SRUN_LOG"].read_text().splitlines()) == 2


def test_slurm_task_without_a_set_or_a_model(cluster):
    done = run("bash", SBATCH, SLURM_ARRAY_TASK_ID=2, **cluster)
    assert done.returncode == 1
    assert "task 2 of the array has no calibration set" in done.stderr
    assert "--array=0-1" in done.stderr
    done = run("bash", SBATCH, **{**cluster, "MODEL": ""})
    assert done.returncode != 0
    assert "set MODEL" in done.stderr
    assert not cluster["OUT"].exists()


def test_slurm_ranks_meet_on_the_first_node(cluster):
    folder = cluster["SRUN_LOG"].parent / "bin"
    for name, line in {"srun": 'echo "$@" >> "$SRUN_LOG"', "scontrol": "echo n3; echo n4"}.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{line}\n")
        (folder / name).chmod(0o755)
    given = cluster | {"SLURM_NNODES": 2, "SLURM_JOB_NODELIST": "n[3-4]", "RANKS": 4}
    done = run("bash", RANKS_SBATCH, **given)
    assert done.returncode == 0, done.stderr
    [step] = cluster["SRUN_LOG"].read_text().splitlines()
    assert step.startswith("torchrun --nnodes=2 --nproc-per-node=4 --rdzv-id=7 ")
    assert "--rdzv-endpoint=n3:29400 -m mlcalib quantize" in step
    assert step.endswith("--hidden-states disk --method gptq --group-size 32")


@pytest.mark.parametrize("script", [SBATCH, RANKS_SBATCH])
def test_slurm_options_are_read_before_the_first_command(script):
    """sbatch stops reading #SBATCH lines at the first command."""
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    first = next(at for at, line in enumerate(lines) if line and not line.startswith("#"))
    options = [at for at, line in enumerate(lines) if line.startswith("#SBATCH ")]
    assert options
    assert max(options) < first
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", lines[at]) for at in options)
