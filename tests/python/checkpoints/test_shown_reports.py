"""What the report of a check shows of itself."""

from small_html import Shown

from mlcalib.checkpoints.check import Finding, Report, Verdict


def test_findings_by_kind_and_readers():
    found = (
        Finding("damaged", "a <shard> ends early"),
        Finding("damaged", "a tensor is missing"),
        Finding("refused", "vLLM 0.11 will not load 3 bits"),
    )
    readers = {"transformers": Verdict(True, ["a & b"]), "vLLM": Verdict(False, ["3 bits"])}
    report = Report("out", "gptq", 14, found, readers, ("a note",))
    assert repr(report) == (
        "Report of out: gptq, 14 quantized linears\n"
        "findings: 2 damaged, 1 refused; should load it: transformers"
    )
    shown = Shown(report._repr_html_())
    assert shown.tables[0][1:] == [
        ["transformers", "should load it", "a & b"],
        ["vLLM", "will not load it", "3 bits"],
    ]
    for line in ("damaged: a <shard> ends early", "refused: vLLM 0.11", "note: a note"):
        assert line in shown.text
    assert shown.text.index("damaged") < shown.text.index("refused")


def test_a_whole_checkpoint():
    report = Report("out", "", 0, (), {})
    assert repr(report).endswith("findings: none; should load it: none of the readers known")
    assert "no errors, no warnings" in Shown(report._repr_html_()).text
