"""llama.cpp's own quantizer on SmolLM2-135M in ten languages, with importance matrices of mlcalib.

    python benchmarks/python/formats_llama_cpp.py TEXT OUT.jsonl [--study FOLDER …] [--scored 2048]

Q4_K_M, Q3_K_M and Q2_K without a matrix, with one from English and with one from ten languages, the
text of formats_smollm2.py. llama.cpp quantizes through llama-cpp-python (``llama_model_quantize``),
from a float32 file that it makes of the model's own; embeddings stay float32, so that the same
linears are quantized as by mlcalib. The files are dequantized and scored as mlcalib scores its own.
Each line of OUT.jsonl is one file: bits per weight, KL from the float model and rise in token loss
of each language. --study draws studies of formats_smollm2.py in size.svg, and the same types of
both in llama-cpp.svg. Files lie beside OUT.jsonl.
"""

import argparse
import ctypes
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlcalib
from mlcalib.models.loading import find_smollm2, load_tokenizer

FTYPES = {"Q2_K": 10, "Q3_K_M": 12, "Q4_K_M": 15}
"""Values of ``enum llama_ftype`` in llama.h; 0 is all float32."""
F32 = 0
TOKENS, SEQ_LEN = 20_480, 512


def quantize(source: Path, out: Path, ftype: int, matrix: Path | None) -> None:
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.allow_requantize = 1, ftype, True
    params.token_embedding_type = params.output_tensor_type = F32
    entries = {} if matrix is None else mlcalib.ImportanceFile.load(matrix).entries
    data = (llama_cpp.llama_model_imatrix_data * (len(entries) + 1))()  # ends with an empty one
    for entry, (name, importance) in zip(data, entries.items(), strict=False):
        mean = (importance.squares / importance.counts[:, None]).ravel().tolist()
        entry.name, entry.size = name.encode(), len(mean)
        entry.data = (ctypes.c_float * len(mean))(*mean)
    if entries:
        params.imatrix = ctypes.cast(data, type(params.imatrix))
    code = llama_cpp.llama_model_quantize(
        str(source).encode(), str(out).encode(), ctypes.byref(params)
    )
    if code:
        raise RuntimeError(f"llama_model_quantize returned {code} for {out}")


def bits_per_weight(file: Path) -> float:
    from gguf import GGUFReader

    found = [
        each
        for each in GGUFReader(file).tensors
        if each.name.startswith("blk.") and len(each.shape) == 2
    ]
    return sum(8 * int(each.n_bytes) for each in found) / sum(
        int(each.n_elements) for each in found
    )


def files(text: Path, folder: Path) -> dict[tuple[str, str], Path]:
    """Return (type, calibration) → file."""
    source, corpus = find_smollm2(), f"files:{text}"
    whole = folder / "float.gguf"
    if not whole.exists():
        quantize(source, whole, F32, None)
    matrices = {name: folder / f"imatrix-{name}.gguf" for name in ("en", "multi10")}
    for name, matrix in matrices.items():
        if not matrix.exists():
            tokenizer, length = load_tokenizer(str(source)), {"tokens": TOKENS, "seq_len": SEQ_LEN}
            calibration = mlcalib.calibration(tokenizer, name, corpus, **length)
            mlcalib.imatrix(str(source), calibration).save(matrix)
    found = {}
    for kind, ftype in FTYPES.items():
        for name, matrix in {"none": None, **matrices}.items():
            found[kind, name] = folder / f"{kind}-{name}.gguf"
            if not found[kind, name].exists():
                quantize(whole, found[kind, name], ftype, matrix)
    return found


def measure(text: Path, out: Path, scored: int) -> None:
    done = {(row["format"], row["calibration"]) for row in known(out)}
    length = {"tokens": scored, "seq_len": SEQ_LEN, "fidelity": True, "dtype": "float32"}
    for (kind, name), file in files(text, out.parent).items():
        if (kind, name) in done:
            continue
        models = [str(find_smollm2()), str(file)]
        cache = out.parent / "scores"
        rows = mlcalib.evaluate(models, "multi10", f"files:{text}", cache=cache, **length)
        row: dict[str, Any] = {"format": kind, "calibration": name, "bits": bits_per_weight(file)}
        for key, metric in (("kl", "kl"), ("loss", "token_loss")):
            row[key] = {
                each.language: each.value
                for each in rows
                if each.metric == metric and each.model == models[1]
            }
        base = {
            each.language: each.value
            for each in rows
            if each.metric == "token_loss" and each.model == models[0]
        }
        row["rise"] = {code: loss - base[code] for code, loss in row.pop("loss").items()}
        with out.open("a") as opened:
            opened.write(json.dumps(row) + "\n")


def known(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)


def show(out: Path, studies: list[Path]) -> None:
    from mlcalib.report.page.canvas import style
    from mlcalib.report.study_report.results import results
    from mlcalib.report.study_report.sizes import KL, Size, size_figure, sizes
    from mlcalib.studies.finished import StudyFigure

    peers = [
        Size(
            f"llama.cpp-{row['format']}-{row['calibration']}",
            f"llama.cpp {row['format']}",
            f"llama.cpp, {row['calibration']}",
            row["bits"],
            row["kl"],
        )
        for row in known(out)
    ]
    print("| file | bits | KL mean | worst | rise mean | worst |\n|---|--:|--:|--:|--:|--:|")
    for each, row in zip(peers, known(out), strict=True):
        numbers = [f(values) for values in (row["kl"], row["rise"]) for f in (mean, _worst)]
        cells = " | ".join(f"{number:.4f}" for number in numbers)
        print(f"| {each.name} | {each.bits:.2f} | {cells} |")
    own: list[Size] = []
    for study in studies:
        what, found = sizes(results(study, resamples=100, seed=0).models[0])
        if what != KL:
            raise ValueError(f"{study} has no fidelity for all of its variants")
        own += [each for each in found if each.name not in {known.name for known in own}]
    same = [each for each in own if each.label.partition("-")[2] in FTYPES]
    for name, shown in (("size", own), ("llama-cpp", [*same, *peers])):
        if own:
            with style():
                figure = size_figure(shown, KL)()
            (out.parent / f"{name}.svg").write_text(StudyFigure(name, figure).svg)


def _worst(values: Mapping[str, float]) -> float:
    return max(values.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--study", type=Path, nargs="+", default=[], help="of formats_smollm2.py")
    parser.add_argument("--scored", type=int, default=2048, help="tokens of each language")
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    measure(given.text, given.out, given.scored)
    show(given.out, given.study)


if __name__ == "__main__":
    main()
