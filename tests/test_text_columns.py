"""Columns of ids: ordered as Python sorts them, quoted as JSON quotes them."""

import json

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from mg3d.text_columns import are_distinct, is_plain, order_of


@given(st.lists(st.one_of(st.text(max_size=20), st.text("ab\0", max_size=70)), max_size=30))
def test_texts_are_ordered_as_python_sorts_them(texts: list[str]) -> None:
    column = pa.array(texts, pa.large_string())
    assert [texts[place] for place in order_of(column)] == sorted(texts)
    assert is_plain(column) == all(json.dumps(text) == f'"{text}"' for text in texts)
    assert are_distinct(column) == (len(set(texts)) == len(texts))
    part = column.slice(1)
    assert part.take(pa.array(order_of(part))).to_pylist() == sorted(texts[1:])
