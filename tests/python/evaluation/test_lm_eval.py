"""The model ``mlcalib`` as ``mlcalib lm-eval`` and lm-eval's own function run it."""

import json
import subprocess
import sys

import pytest
import torch
from small_models import tiny_llama
from small_tasks import write_all

pytest.importorskip("lm_eval")

import lm_eval
from lm_eval.tasks import TaskManager

from mlcalib.checkpoints.packed import load_to_run
from mlcalib.common import compat
from mlcalib.evaluation.lm_eval import LoadedModel
from mlcalib.evaluation.tasks import run_tasks


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    model = tiny_llama(vocabulary=384)
    model.config.max_position_embeddings = 1024
    out = tmp_path_factory.mktemp("model") / "tiny"
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def task_file(tmp_path_factory):
    """A task of a user's own, in the harness's format."""
    root = tmp_path_factory.mktemp("tasks")
    data = write_all(root / "data") / "xnli" / "sw" / "validation.jsonl"
    tasks = root / "yaml"
    tasks.mkdir()
    (tasks / "small.yaml").write_text(
        "task: small\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: '{data}'}}, cache_dir: '{root / 'cache'}'}}\n"
        "test_split: test\n"
        "output_type: multiple_choice\n"
        "doc_to_text: '{{premise}}'\n"
        "doc_to_target: label\n"
        "doc_to_choice: ['ndio', 'labda', 'hapana']\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    return tasks


def test_the_function_knows_the_model(folder, task_file):
    manager = TaskManager(include_path=str(task_file), include_defaults=False)

    def samples(name, arguments):
        found = lm_eval.simple_evaluate(
            name,
            model_args={"pretrained": str(folder), "dtype": "float32", **arguments},
            tasks=["small"],
            task_manager=manager,
            bootstrap_iters=0,
        )
        return [sample["filtered_resps"] for sample in found["samples"]["small"]]

    ours, theirs = samples("mlcalib", {}), samples("hf", {"device": "cpu"})
    for mine, other in zip(ours, theirs, strict=True):
        for a, b in zip(mine, other, strict=True):
            assert a[0] == pytest.approx(b[0], abs=1e-3)


COMMAND = """
import sys
from lm_eval.tasks import TaskManager

init = TaskManager.__init__  # reading all the harness's own task files takes a while
TaskManager.__init__ = lambda self, *a, **k: init(self, *a, **{**k, "include_defaults": False})
from mlcalib.cli import main
main()
"""


def test_the_command_knows_the_model(folder, task_file, tmp_path):
    command = [
        *(sys.executable, "-c", COMMAND, "lm-eval", "run", "--model", "mlcalib"),
        *("--model_args", f"pretrained={folder},dtype=float32", "--tasks", "small"),
        *("--include_path", str(task_file), "--output_path", str(tmp_path / "out.json")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    (written,) = tmp_path.glob("out*.json")
    assert "acc,none" in json.loads(written.read_text())["results"]["small"]


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_arguments_are_the_harness_s(arguments):
    def output(*command):
        done = subprocess.run(
            [sys.executable, *command, *arguments], stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout

    ours = output("-c", "from mlcalib.cli import main; main()", "lm-eval")
    assert ours == output("-m", "lm_eval")
    assert "usage: lm-eval" in ours


REGISTERED = "from lm_eval.api.registry import model_registry; print('mlcalib' in model_registry)"


@pytest.mark.parametrize("order", ["mlcalib, lm_eval.models", "lm_eval.models, mlcalib"])
def test_importing_mlcalib_registers_the_model_in_either_order(order):
    assert output(f"import {order}; {REGISTERED}") == "True\n"


def test_importing_mlcalib_does_not_import_the_harness():
    assert output("import sys, mlcalib; print('lm_eval' in sys.modules)") == "False\n"


def output(program):
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def test_another_release_of_the_harness_still_works():
    """Only the model's name is lacking then."""
    program = (
        "import warnings, lm_eval.api.registry as registry\n"
        "registry.model_registry = None\n"
        "warnings.simplefilter('error')\n"
        "from mlcalib.evaluation.registration import _register\n"
        "try:\n    _register()\n"
        "except UserWarning as warning:\n    print(warning)\n"
    )
    assert "does not take the model mlcalib" in output(program)


@pytest.mark.parametrize(("amx", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_dtype_is_bfloat16_with_amx(folder, monkeypatch, amx, dtype):
    monkeypatch.setattr(compat, "multiplies_bfloat16", lambda: amx)
    assert LoadedModel(str(folder)).model.dtype == dtype


def test_a_quantized_folder_is_read(folder, tmp_path, task_file, tokenizer):
    import mlcalib

    mlcalib.quantize(str(folder), method="rtn", bits=4, group_size=64).save(tmp_path / "q")
    lm = LoadedModel(str(tmp_path / "q"), dtype="float32")
    data = task_file.parent / "data"
    ours = run_tasks(lm.model, lm.tokenizer, "xnli", "sw", data=data, progress=False)
    live = load_to_run(str(tmp_path / "q"), "float32")
    assert ours.items == run_tasks(live, tokenizer, "xnli", "sw", data=data, progress=False).items


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no model at"):
        LoadedModel(str(tmp_path / "none"))
