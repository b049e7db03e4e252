"""JSON that is read member by member, or item by item."""

import json
from itertools import accumulate, pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlcalib.common.json_text import MAX_DEPTH, items, loads, members

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=4), inside),
    max_leaves=6,
)


def result(read, text):
    try:
        return read(text)
    except ValueError:
        return ValueError


@settings(max_examples=60)
@given(
    st.dictionaries(st.text(max_size=4), VALUES),
    st.sampled_from([None, 1, "\n "]),
    st.integers(0, 200),
    st.sampled_from(["", *'{}[],: \n1"\\x']),
    st.integers(0, 2),
)
@example({}, None, 0, "", 0)
@example({"a": 1}, None, 6, ",", 0)
@example({"a": 1}, None, 9, "x", 0)
def test_members_are_those_of_the_object(content, indent, at, patch, cut):
    text = json.dumps(content, indent=indent)
    at = min(at, len(text))
    text = text[:at] + patch + text[at + cut :]
    whole = result(loads, text)
    expected = whole if isinstance(whole, dict) else ValueError
    assert result(lambda text: dict(members(text)), text) == expected


@settings(max_examples=100)
@given(
    st.lists(VALUES, max_size=4),
    st.sampled_from([None, 1, "\n "]),
    st.integers(0, 200),
    st.sampled_from(["", *'{}[],: \n1"\\x']),
    st.integers(0, 2),
    st.lists(st.integers(1, 9)),
)
@example([12, 3], None, 0, "", 0, [1, 2])
@example([], None, 2, ",", 0, [1])
def test_items_are_those_of_the_array(content, indent, at, patch, cut, sizes):
    text = json.dumps(content, indent=indent)
    at = min(at, len(text))
    text = text[:at] + patch + text[at + cut :]
    whole = result(loads, text)
    expected = whole if isinstance(whole, list) else ValueError
    starts = [0, *accumulate(sizes), len(text)]
    pieces = [text[start:end] for start, end in pairwise(starts) if text[start:end]]
    assert result(lambda pieces: list(items(pieces)), pieces) == expected


@pytest.mark.parametrize("depth", [MAX_DEPTH - 1, MAX_DEPTH, 5000, 10**6])
def test_members_are_not_deep(depth):
    text = f'{{"a": {"[" * depth}{"]" * depth}}}'
    expected = ValueError if depth >= MAX_DEPTH else loads(text)
    assert result(lambda text: dict(members(text)), text) == expected
    assert result(loads, text) == expected
