"""Divergence from the float model: laws, and the plainest float64 way to compute it."""

import copy
import gc
import math
import weakref
from dataclasses import replace

import pytest
import torch
from small_models import ARCHITECTURES, tiny_llama, tiny_model
from small_tokenizer import make_tokenizer

import mlcalib
from mlcalib.evaluation import (
    DocumentScores,
    Scores,
    eval_text,
    fidelity_of,
    fidelity_rows,
    flips,
    perplexity_of,
    reference_of,
    subject,
)
from mlcalib.evaluation.fidelity import worst_share
from mlcalib.evaluation.perplexity import _divergence
from mlcalib.evaluation.reference import head_of
from mlcalib.report.tables.fidelity import fidelity_table
from mlcalib.results.rows import Row
from mlcalib.results.significance import paired_ratio

SCALE = {"tokens": 200, "seq_len": 32}


@pytest.fixture(scope="module")
def texts(tokenizer):
    return eval_text(tokenizer, "en,sw", "sample", None, tokens=300)


@pytest.fixture(scope="module")
def model():
    return tiny_llama(vocabulary=384)


def changed(model, by=0.01):
    """Return a copy with a bit of noise on every parameter."""
    other = copy.deepcopy(model)
    draws = torch.Generator().manual_seed(1)
    for parameter in other.parameters():
        parameter.data += by * torch.randn(parameter.shape, generator=draws)
    return other


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_does_not_differ_from_itself(name, dtype, texts):
    model = tiny_model(name, vocabulary=384, dtype=dtype)
    reference, scores = reference_of(model, texts, **SCALE)
    for code, found in fidelity_of(model, texts, reference, **SCALE).items():
        assert found.kl.tolist() == [0.0] * 200  # the head gives the same bits again
        assert found.agrees.all()
        assert torch.equal(found.loss, scores[code].loss)


def plain_divergence(model, other, text):
    """KL and agreement of each token's distribution, in float64, window by window."""
    kl, agrees = [], []
    for start in range(0, SCALE["tokens"], SCALE["seq_len"]):
        ids = text.ids[None, start : min(start + SCALE["seq_len"], SCALE["tokens"])]
        with torch.no_grad():
            p, q = (each(ids).logits[0].double().softmax(-1) for each in (model, other))
        kl += (p * (p / q).log()).sum(-1).tolist()
        agrees += (p.argmax(-1) == q.argmax(-1)).tolist()
    return torch.tensor(kl, dtype=torch.float64), agrees


def test_divergence_is_that_of_the_plain_way(model, texts):
    other = changed(model)
    reference, _ = reference_of(model, texts, **SCALE)
    found = fidelity_of(other, texts, reference, **SCALE)
    alone = perplexity_of(other, texts, **SCALE)
    for code, text in texts.items():
        kl, agrees = plain_divergence(model, other, text)
        torch.testing.assert_close(found[code].kl, kl, rtol=1e-3, atol=1e-7)
        assert found[code].agrees.tolist() == agrees
        assert not all(agrees)
        assert torch.equal(found[code].loss, alone[code].loss)


def test_small_divergences_do_not_drown_in_rounding():
    draws = torch.Generator().manual_seed(0)
    a = 3 * torch.randn(20, 50_000, generator=draws)
    b = a + 0.01 * torch.randn(a.shape, generator=draws)
    p, q = (each.double().log_softmax(-1) for each in (a, b))
    found = _divergence(a.log_softmax(-1), b.log_softmax(-1))
    assert (found >= 0).all()
    torch.testing.assert_close(found.double(), (p.exp() * (p - q)).sum(-1), rtol=1e-4, atol=0)


def test_each_model_runs_once(model, texts):
    runs = []
    other = changed(model)
    handles = [
        each.model.register_forward_hook(lambda *_, each=each: runs.append(each is model))
        for each in (model, other)
    ]
    reference, _ = reference_of(model, texts, **SCALE)
    for _ in range(2):
        fidelity_of(other, texts, reference, **SCALE)
    for handle in handles:
        handle.remove()
    windows = 2 * math.ceil(SCALE["tokens"] / SCALE["seq_len"])
    assert (runs.count(True), runs.count(False)) == (windows, 2 * windows)


def test_the_head_alone_stays_and_the_model_as_it_was(model):
    before = [type(module) for module in model.modules()]
    head = head_of(model)
    assert [name for name, _ in head.named_parameters()] == ["lm_head.weight"]
    assert head.lm_head.weight is model.lm_head.weight
    assert [type(module) for module in model.modules()] == before


def test_a_model_without_a_base_model_is_refused(model):
    class Whole(type(model)):
        base_model_prefix = ""

    with pytest.raises(NotImplementedError, match="Whole is not made of a base model and"):
        head_of(Whole(model.config))


def test_means_percentiles_and_errors_are_those_of_the_tokens(model, texts):
    reference, scores = reference_of(model, texts, **SCALE)
    found = fidelity_of(changed(model), texts, reference, **SCALE)
    rows = fidelity_rows(found, scores, "m", "rtn", "none")
    kl = found["sw"].kl
    values = {row.metric: row for row in rows if row.language == "sw"}
    assert values["kl"].value == pytest.approx(float(kl.mean()))
    assert values["kl_p90"].value == pytest.approx(sorted(kl.tolist())[179], rel=0.1)
    assert values["kl"].value < values["kl_p90"].value < values["kl_p99"].value <= float(kl.max())
    agreement = values["top1_agreement"]
    assert agreement.value == pytest.approx(float(found["sw"].agrees.double().mean()))
    rise = values["loss_rise"]
    assert rise.value == pytest.approx(
        found["sw"].token_loss[0] - scores["sw"].token_loss[0], abs=1e-12
    )
    assert rise.stderr == found["sw"].mean(found["sw"].loss - scores["sw"].loss)[1]
    expected = paired_ratio(
        scores["sw"].by_document().loss,
        *found["sw"].by_document()[:2],
        seed=values["loss_rise_p"].seed,
    )
    for end in ("low", "high", "p"):
        row = values[f"loss_rise_{end}"]
        assert (row.value, row.n) == (getattr(expected, end), expected.n)
    for metric in ("kl", "kl_p90", "kl_p99", "top1_agreement", "loss_rise"):
        row = values[metric]
        assert (row.task, row.method, row.n) == ("fidelity", "rtn", 200)
        assert row.stderr > 0
        assert "torch " in row.versions


def test_errors_of_percentiles_are_those_of_a_bootstrap_over_documents():
    documents, length = 100, 40
    draws = torch.Generator().manual_seed(0)
    level = torch.rand(documents, 1, generator=draws)  # documents differ, as texts do
    kl = (level - torch.rand(documents, length, generator=draws).log()).double()
    zeros, owner = torch.zeros(kl.numel()), torch.arange(documents).repeat_interleave(length)
    scores = Scores(zeros.double(), zeros.long() + 1, owner, kl.flatten(), zeros.bool())
    rows = {row.metric: row for row in fidelity_rows({"en": scores}, {"en": scores}, "", "", "")}
    picks = torch.randint(documents, (1000, documents), generator=draws)
    for metric, p in (("kl_p90", 0.9), ("kl_p99", 0.99)):
        spread = torch.stack([kl[pick].flatten().quantile(p) for pick in picks]).std()
        assert rows[metric].stderr == pytest.approx(float(spread), rel=0.25)
    assert rows["kl"].stderr == pytest.approx(float(kl[picks].mean((1, 2)).std()), rel=0.1)


def scored(losses, tokens=2):
    return DocumentScores(losses, [tokens] * len(losses), [9] * len(losses))


def test_the_share_of_the_worst_documents():
    # 40 documents, so the worst two: rises of 6 and 4 of 10 + 38 * 0.5.
    before, after = [1.0] * 40, [1.5] * 40
    after[7], after[30] = 7.0, 5.0
    assert worst_share(scored(before), scored(after)) == pytest.approx(10 / 29)
    assert worst_share(scored([1.0] * 40), scored([2.0] * 40)) == pytest.approx(0.05)
    assert worst_share(scored([1.0, 1.0, 1.0]), scored([1.0, 4.0, 0.0])) == pytest.approx(1.5)
    assert worst_share(scored(before), scored(before)) is None
    with pytest.raises(ValueError, match=r"on other documents \(40 and 3\)"):
        worst_share(scored(before), scored([1.0] * 3))


def test_a_loss_that_did_not_rise_has_no_share(model, texts):
    reference, scores = reference_of(model, texts, **SCALE)
    same = fidelity_of(model, texts, reference, **SCALE)
    metrics = {row.metric for row in fidelity_rows(same, scores, "m", "rtn", "none")}
    assert "kl" in metrics
    assert "worst_documents_share" not in metrics


def test_flips():
    assert flips([1, 1, 1, 0, 0], [1, 0, 0, 1, 0]) == (2, 1, 5)
    assert flips([True, False], [True, False]) == (0, 0, 2)
    for bad in ([1, 0], []):
        with pytest.raises(ValueError, match="give one or more, the same of both"):
            flips(bad, [] if bad == [] else [1])
    with pytest.raises(ValueError, match=r"An item is 0\.5; expected 1"):
        flips([1, 0], [1, 0.5])


def test_other_vocabularies_are_refused(model, texts):
    reference, _ = reference_of(model, texts, **SCALE)
    with pytest.raises(ValueError, match=r"^language 'en': the model predicts 400 .* 384;"):
        fidelity_of(tiny_llama(vocabulary=400), texts, reference, **SCALE)


def test_scores_without_a_reference_have_no_fidelity(model, texts):
    scores = perplexity_of(model, texts, **SCALE)
    with pytest.raises(ValueError, match="measured without a reference; use fidelity_of"):
        fidelity_rows(scores, scores, "m", "rtn", "none")


@pytest.fixture(scope="module")
def folders(model, tokenizer, tmp_path_factory):
    folders = []
    for number, each in enumerate((model, changed(model, 0.01), changed(model, 0.02))):
        folders.append(tmp_path_factory.mktemp("models") / f"{number}")
        each.save_pretrained(folders[-1])
        tokenizer.save_pretrained(folders[-1])
    return folders


def test_evaluate_compares_with_the_first(folders, model, texts):
    options = {"progress": False, "dtype": "float32", **SCALE}
    plain = mlcalib.evaluate(folders, "en,sw", **options)
    rows = mlcalib.evaluate(folders, "en,sw", fidelity=True, **options)
    assert [row for row in rows if row.task == "perplexity"] == plain
    found = [row for row in rows if row.task == "fidelity"]
    assert {row.model for row in found} == {str(folder) for folder in folders[1:]}
    reference, scores = reference_of(model, texts, **SCALE)
    other = fidelity_of(changed(model, 0.02), texts, reference, **SCALE)
    assert [row for row in found if row.model == str(folders[2])] == fidelity_rows(
        other, scores, str(folders[2]), "float", "none"
    )
    kl = [row.value for row in found if (row.metric, row.language) == ("kl", "sw")]
    assert kl[0] < kl[1]


def test_what_cannot_be_compared_is_refused(folders, tmp_path, model):
    with pytest.raises(ValueError, match="to the first of several models; give two or more"):
        mlcalib.evaluate(folders[0], "en", fidelity=True, **SCALE)
    other = make_tokenizer("<s> $A")
    model.save_pretrained(tmp_path)
    other.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"model {tmp_path}: its tokenizer makes other tokens"):
        mlcalib.evaluate([folders[0], tmp_path], "en", fidelity=True, progress=False, **SCALE)


def test_no_model_is_in_memory_beside_another(folders, monkeypatch):
    load, loaded, alive = subject.load_to_run, [], []

    def watched(*args):
        gc.collect()
        alive.append([base() is not None for base in loaded])
        model = load(*args)
        loaded.append(weakref.ref(model.model))
        return model

    monkeypatch.setattr(subject, "load_to_run", watched)
    mlcalib.evaluate(folders, "en", fidelity=True, progress=False, **SCALE)
    assert alive == [[], [False], [False, False]]


def fidelity(model, language, metric, value, stderr=None):
    return Row(model, "rtn", "none", language, "fidelity", metric, value, stderr, 9)


def test_the_table_says_what_is_significant_and_where_the_loss_did_not_rise():
    rows = [
        fidelity("a", "en", "loss_rise", -0.01),
        fidelity("a", "en", "kl", 0.12345, 0.0123),
        fidelity("a", "en", "kl_p90", 0.3),
        fidelity("a", "en", "kl_p99", 1.5),
        fidelity("a", "en", "top1_agreement", 0.9123, 0.004),
        fidelity("b", "en", "kl", 1e-5, 1e-7),
        fidelity("b", "en", "worst_documents_share", 0.25),
        replace(fidelity("b", "en", "token_loss", 2.0), task="perplexity"),
    ]
    for language, p in (("en", 0.01), ("sw", 0.04), ("fr", 0.04)):  # 0.04 twice is 0.08 by Holm
        values = {"": 0.5, "_low": 0.25, "_high": 0.75, "_p": p}
        rows += [fidelity("b", language, f"loss_rise{end}", each) for end, each in values.items()]
    missing = ["not measured"] * 3
    assert fidelity_table(rows)[1:] == [
        ["en", "rtn a", "-0.0100", "0.1235 ± 0.012", "0.3", "1.5", "91.2 ± 0.4", "no rise"],
        ["en", "rtn b", "+0.5000 [+0.2500, +0.7500] *", "1e-05 ± 1e-07", *missing, "25.0"],
        ["sw", "rtn", "+0.5000 [+0.2500, +0.7500]", "not measured", *missing, "no rise"],
        ["fr", "rtn", "+0.5000 [+0.2500, +0.7500]", "not measured", *missing, "no rise"],
    ]
    with pytest.raises(ValueError, match="mlcalib evaluate --fidelity"):
        fidelity_table([row for row in rows if row.task == "perplexity"])
