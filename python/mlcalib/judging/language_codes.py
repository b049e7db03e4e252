"""Language codes of data sets → mlcalib's."""

from mlcalib.languages import language, languages

# ISO 639-3 macrolanguages, as the Aya evaluation suite names languages → the catalogue's code.
_MACROLANGUAGES = {
    "ara": "ar",
    "aze": "az",
    "est": "et",
    "fas": "fa",
    "kau": "kr",
    "kur": "ku",
    "lav": "lv",
    "mlg": "mg",
    "mon": "mn",
    "msa": "ms",
    "nep": "ne",
    "nor": "nb",
    "pus": "ps",
    "sqi": "sq",
    "swa": "sw",
    "uzb": "uz",
    "yid": "yi",
}


def find_code(given: str, script: str | None = None) -> str:
    """Return mlcalib's code of a language.

    Args:
        given: mlcalib's code (``sw``), FLORES-200's (``swh_Latn``) or ISO 639-3 (``swh``,
            ``swa``).
        script: ISO 15924, which tells apart what is written in two (``zho``: ``Hans``, ``Hant``).

    Raises:
        ValueError: there is no such language; names the nearest.
    """
    entries = {entry.code: entry for entry in languages()}
    plain = given if given in entries else _MACROLANGUAGES.get(given)
    by_flores = {entry.flores: entry.code for entry in entries.values() if entry.flores}
    iso, _, own_script = given.partition("_")
    script = script or own_script
    if plain is None:
        if f"{iso}_{script}" in by_flores:
            return by_flores[f"{iso}_{script}"]
        # Of several scripts the catalogue's plain code comes first: zh before zh-Hant.
        plain = next((code for name, code in by_flores.items() if name[:3] == iso), None)
    if plain is None:
        return language(given).code  # raises, and says what may have been meant
    if script and entries[plain].script not in (script, None):
        plain = next(
            (
                entry.code
                for entry in entries.values()
                if entry.script == script and entry.code.partition("-")[0] == plain
            ),
            plain,
        )
    return plain
