"""Try every causal and image-text class of transformers, tiny and with random weights.

Each is built, run on 16 tokens, discovered, and quantized by rtn, gptq and awq, in memory and from
files; transformers reads the checkpoint again, which has to give the same logits. Each class runs
in a process of its own, so none can stop the sweep.

    python tests/sweep/run.py [--only Llama,Gemma3] [--jobs 2] [--seconds 120] [--out build/sweep]

Writes OUT.json after each class, and at the end OUT.md, the table of docs/reference/models.md. With
--resume, classes that OUT.json has already are not tried again, unless --only names them.
"""

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
warnings.filterwarnings("ignore")

import torch  # noqa: E402 - after the number of threads is set
import transformers  # noqa: E402
from examine import METHODS, Result, examine  # noqa: E402
from tiny_architectures import architectures  # noqa: E402

MEMORY = 14 << 30


def main() -> None:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="parts of names of classes, with commas")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=int, default=120, help="of a processor, for each class")
    parser.add_argument("--out", type=Path, default=Path("build/sweep"))
    parser.add_argument("--resume", action="store_true", help="go on from what OUT.json has")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    wanted = asked.only.lower().split(",")
    found = architectures().items()
    todo = {name: types for name, types in found if any(e in name.lower() for e in wanted)}
    file = asked.out.with_suffix(".json")
    done = json.loads(file.read_text()) if asked.resume and file.exists() else []
    again = set(todo) if asked.only else set()
    done = [result for result in done if result["class"] not in again]
    todo = {name: todo[name] for name in todo if name not in {each["class"] for each in done}}
    examine("LlamaForCausalLM", ["llama"], lambda _: None)  # what all need is imported once
    file.parent.mkdir(parents=True, exist_ok=True)
    results = sweep(todo, asked.jobs, asked.seconds, file, done)
    asked.out.with_suffix(".md").write_text(table(results))
    print(table(results))


def sweep(
    todo: dict[str, list[str]], jobs: int, seconds: int, out: Path, results: list[Result]
) -> list[Result]:
    """Return what became of each class, those before included; write it after each."""
    waiting, running = list(todo.items()), dict[int, tuple[str, Path, float]]()
    total = len(results) + len(todo)
    with tempfile.TemporaryDirectory(prefix="sweep.") as folder:
        while waiting or running:
            while waiting and len(running) < jobs:
                name, model_types = waiting.pop(0)
                file = Path(folder, f"{name}.json")
                if (child := os.fork()) == 0:
                    _child(name, model_types, file, seconds)
                running[child] = (name, file, time.time())
            child, status = os.wait()
            name, file, start = running.pop(child)
            result: Result = json.loads(file.read_text()) if file.exists() else {"class": name}
            if status:
                result["why"] = f"{result.get('stage')}: ended by signal {status & 127}"
            result["seconds"] = round(time.time() - start, 1)
            results = sorted([*results, result], key=lambda each: str(each["class"]))
            part = out.with_suffix(".part")
            part.write_text(json.dumps(results, indent=1) + "\n")
            part.replace(out)
            print(
                f"[{len(results)}/{total}] {name}: {result.get('why') or 'all'}",
                file=sys.stderr,
            )
    return results


def _child(name: str, model_types: list[str], file: Path, seconds: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    signal.alarm(20 * seconds)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    kept: Result = {"class": name}

    def keep(result: Result) -> None:
        part = file.with_suffix(".part")
        part.write_text(json.dumps(result))
        part.replace(file)
        kept.update(result)

    try:
        keep(examine(name, model_types, keep))
    except BaseException as error:  # the sweep goes on
        keep(
            {
                **kept,
                "why": f"{kept.get('stage')}: {error!r}",
                "trace": traceback.format_exc()[-2000:],
            }
        )
    finally:
        os._exit(0)


def table(results: list[Result]) -> str:
    """Return how many classes get how far, and why the others do not, in Markdown."""

    def count(key: str) -> int:
        return sum(bool(each.get(key)) for each in results)

    rows = [
        ("classes", len(results)),
        ("built", count("built")),
        ("run on token ids", count("runs")),
    ]
    rows += [("discovered", count("blocks"))]
    rows += [(f"{m}: the reloaded checkpoint gives the same logits", count(m)) for m in METHODS]
    rows += [
        (
            "awq, with at least one scale group proved",
            sum(bool(r.get("awq") and r.get("scale_groups")) for r in results),
        )
    ]
    lines = [f"transformers {transformers.__version__}", "", "| | classes |", "|---|--:|"]
    lines += [f"| {name} | {number} |" for name, number in rows]
    failed = [each for each in results if not all(each.get(method) for method in METHODS)]
    lines += ["", "| class | why it does not get to the end |", "|---|---|"]
    lines += [f"| {each['class']} | {_cell(each.get('why'))} |" for each in failed]
    return "\n".join(lines) + "\n"


def _cell(why: Any) -> str:
    return str(why).replace("|", "\\|").replace("\n", " ")[:200]


if __name__ == "__main__":
    main()
