"""What a calibration set shows of itself."""

from small_html import Shown

import mlcalib

TEXTS = {"en": ["the first <b>buyers</b> " * 20] * 9, "sw": ["wanunuzi wa kwanza "]}


def test_a_calibration_set(tokenizer):
    made = mlcalib.calibration(tokenizer, corpus=TEXTS, tokens=200, seq_len=16, allow_short=True)
    got = made.tokens["sw"]
    assert repr(made) == (
        f"CalibrationSet 'en+sw' of the corpus 'given': {100 + got} tokens of the 200 asked for, "
        "in sequences of 16\n2 languages: en sw"
    )
    html = made._repr_html_()
    (table,) = Shown(html).tables
    header, *cells = made._cells()
    assert [row[:3] + row[4:] for row in table] == [header, *cells]
    assert f"short: sw lacks {100 - got} of 100 tokens" in Shown(html).text
    assert "width:100.0%" in html
    assert f"width:{got:.1f}%" in html


def test_its_warnings_are_shown(tokenizer):
    made = mlcalib.calibration(tokenizer, corpus={"zh": ["Latin letters " * 9] * 20}, tokens=300)
    assert "; 2 warnings, see table()" in repr(made)
    assert all(f"warning: {warning}" in Shown(made._repr_html_()).text for warning in made.warnings)
