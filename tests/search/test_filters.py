"""Filters of remote stores: SQL's answers, nothing but the grammar, and no way from a value into the statement."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Mapping
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilience.errors import InputError
from consilience.search.stores.filters import (
    Among,
    Compare,
    Empty,
    Joined,
    Kind,
    Node,
    kind_of,
    parse,
    to_milvus,
    to_postgres,
)
from tests.search.servers import passes

COLUMNS: dict[str, Kind] = {"index": "int", "label": "text", "price": "float", "new": "bool", "odd name": "text"}
VALUES: dict[str, tuple[Any, ...]] = {
    "index": (0, 1, 7), "label": ("a", "it's", 'say "x"\n', "\\"), "price": (-1.5, 0.0, 2.0), "new": (True, False),
}  # fmt: skip


def truth(node: Node, row: Mapping[str, Any]) -> bool:
    """The definition, for one row; an empty value passes nothing but ``is null``."""
    if isinstance(node, Joined):
        return (all if node.word == "and" else any)(truth(part, row) for part in node.parts)
    value = row[node.column]
    if isinstance(node, Empty):
        return (value is None) != node.negated
    if value is None:
        return False
    if isinstance(node, Among):
        return (value in node.values) != node.negated
    tests = {"=": "__eq__", "!=": "__ne__", "<": "__lt__", "<=": "__le__", ">": "__gt__", ">=": "__ge__"}
    return bool(getattr(value, tests[node.op])(node.value))


def literal(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


def of_column(name: str) -> st.SearchStrategy[str]:
    values = st.sampled_from(VALUES[name]).map(literal)
    ops = st.sampled_from(["=", "!=", "<>", "<", "<=", ">", ">="])
    if name == "new":
        return st.sampled_from(["new", "not new", "new = true", "new != false", "new is null", "new is not null"])
    return st.one_of(
        st.builds("{} {} {}".format, st.just(name), ops, values),
        st.builds("{} {} {}".format, values, ops, st.just(name)),
        st.builds("{} {}in ({}, {})".format, st.just(name), st.sampled_from(["", "not "]), values, values),
        st.builds("{} is {}null".format, st.just(name), st.sampled_from(["", "not "])),
    )


FILTERS = st.recursive(
    st.sampled_from(sorted(VALUES)).flatmap(of_column),
    lambda inner: st.one_of(
        st.builds("({} and {})".format, inner, inner),
        st.builds("({} or {})".format, inner, inner),
        st.builds("not ({})".format, inner),
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[dict[str, Any]]]:
    draw = np.random.default_rng(0)
    entries = [
        {
            name: None if draw.random() < 0.25 else options[draw.integers(len(options))]
            for name, options in VALUES.items()
        }
        for _ in range(60)
    ]
    entries = [{**entry, "row": i} for i, entry in enumerate(entries)]
    return lance.write_dataset(pa.Table.from_pylist(entries), str(tmp_path_factory.mktemp("rows") / "rows")), entries


@pytest.fixture(scope="module")
def database(rows: tuple[Any, list[dict[str, Any]]]) -> sqlite3.Connection:
    database = sqlite3.connect(":memory:")
    database.execute('create table rows ("index" integer, label text, price real, new boolean, row integer)')
    database.executemany("insert into rows values (:index, :label, :price, :new, :row)", rows[1])
    return database


@given(where=FILTERS)
def test_the_tree_and_milvus_pass_the_rows_that_sql_passes(
    where: str, rows: tuple[Any, list[dict[str, Any]]], database: sqlite3.Connection
) -> None:
    quoted = re.sub(r"\bindex\b", '"index"', where)  # a reserved word there
    expected = [row for (row,) in database.execute(f"select row from rows where {quoted} order by row")]
    node = parse(where, COLUMNS)
    assert [row["row"] for row in rows[1] if truth(node, row)] == expected
    assert [row["row"] for row in rows[1] if passes(to_milvus(node), row)] == expected


# The Table's engine takes two conditions that cannot both hold for false where SQL says unknown, so a "not" around
# them passes empty values there: plain conditions and their negations are what it must agree on.
@given(where=st.sampled_from(sorted(VALUES)).flatmap(of_column), negated=st.booleans())
def test_the_table_passes_the_same_rows(where: str, negated: bool, rows: tuple[Any, list[dict[str, Any]]]) -> None:
    data, entries = rows
    where = f"not ({where})" if negated else where
    found = sorted(data.to_table(columns=["row"], filter=where)["row"].to_pylist())
    assert found == [row["row"] for row in entries if truth(parse(where, COLUMNS), row)]


@given(where=FILTERS)
def test_every_value_is_bound(where: str) -> None:
    text, values = to_postgres(parse(where, COLUMNS))
    assert text.count("%s") == len(values)
    assert not set(text) & set("'\\;\n")
    assert all(f'"{name}"' in text for name in VALUES if name in where)


@given(text=st.text(max_size=40))
def test_text_stays_a_value(text: str) -> None:
    where = f"label = {literal(text)}"
    if "\0" in text:
        with pytest.raises(InputError, match="zero byte"):
            parse(where, COLUMNS)
        return
    node = parse(where, COLUMNS)
    assert node == Compare("label", "=", text)
    assert to_postgres(node) == ('"label" = %s', [text])


@given(text=st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(InputError):
        node = parse(text, COLUMNS)
        assert truth(node, dict.fromkeys(COLUMNS)) in (True, False)
        assert to_postgres(node)[0].count("%s") == len(to_postgres(node)[1])


def test_how_it_is_written() -> None:
    node = parse("not (label in ('a') or new) and `odd name` = \"b\" and 5 >= INDEX", COLUMNS)
    assert to_postgres(node) == (
        '((("label" is not null and "label" not in (%s)) and ("new" is not null and "new" != %s)) '
        'and "odd name" = %s and "index" <= %s)',
        ["a", True, "b", 5],
    )
    assert to_milvus(parse("not (label in ('a') or new) and 5 >= index", COLUMNS)) == (
        '(((label is not null and label not in ["a"]) and (new is not null and new != true)) and index <= 5)'
    )
    assert to_postgres(parse("true", {})) == ("true", [])
    assert (to_milvus(parse("false", {})), to_milvus(parse("true", {}))) == ("index < 0", "index >= 0")
    assert to_postgres(parse('`a"; drop` = 1', {'a"; drop': "int"}))[0] == '"a""; drop" = %s'
    assert parse("index = 2.0 and price > 1", COLUMNS) == Joined(
        "and", (Compare("index", "=", 2), Compare("price", ">", 1.0))
    )


REFUSED = {
    "lable = 'a'": "did you mean 'label'?",
    "label = null": "write: is null",
    "label = index": "columns are compared with values only",
    "label = (select 1)": "'(' is no value",
    "index = 'a'": "index is int, 'a' is text",
    "label = 1": "label is text, 1 is int",
    "index = 1.5": "index is int, 1.5 is float",
    "new = 1": "new is bool, 1 is int",
    "index = 9223372036854775808": "does not fit 64 bits",
    "price = 1e999": "1e999 is too large",
    "label like 'a%'": "compare it with a value",
    "label = 'a' or 1 = 1": "where the name of a column is expected",
    "label = 'a'; drop table x": "cannot read '; drop table x'",
    "label = 'a' -- b": "'-' is not expected there",
    "label = 'a' /* b */": "cannot read '/* b */'",
    "upper(label) = 'A'": "unknown column of the filter 'upper'",
    "label in ()": "')' is no value",
    "label in ('a', null)": "'null' is no value",
    "index = 1a": "cannot read '1a'",
    "'a": "cannot read",
    "(index = 1": "')' is expected",
    "index = ": "it ends too early",
    "": "it ends too early",
    "label": "label is text; compare it with a value",
    "(" * 60 + "new" + ")" * 60: "more than 50 parentheses",
    "new or " * 20_000 + "new": "at most 100000 are read",
    "index = " + "9" * 5000: "is too large",
}


@pytest.mark.parametrize("where", REFUSED, ids=lambda where: where[:24])
def test_the_rest_is_refused(where: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(where, COLUMNS)
    assert REFUSED[where] in str(caught.value)
    assert len(str(caught.value)) < 400


def test_control_characters_cannot_be_written_for_milvus() -> None:
    with pytest.raises(InputError, match="control characters"):
        to_milvus(parse("label = 'a\x01'", COLUMNS))


def test_kinds_of_columns() -> None:
    kinds = {pa.int8(): "int", pa.uint32(): "int", pa.float16(): "float", pa.large_string(): "text", pa.bool_(): "bool"}
    assert {kind: kind_of("x", kind) for kind in kinds} == kinds
    for kind in (pa.binary(), pa.list_(pa.int8()), pa.timestamp("s"), pa.uint64()):
        with pytest.raises(InputError, match="attributes of a store are text, numbers or true/false"):
            kind_of("x", kind)
