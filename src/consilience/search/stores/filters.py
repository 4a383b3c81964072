"""The part of the Table's SQL filters that every store understands: read once, checked, written for each engine.

    filter     := all ("or" all)*
    all        := one ("and" one)*
    one        := "not" one | "(" filter ")" | "true" | "false" | column | column "is" ["not"] "null"
                | column ["not"] "in" "(" literal ("," literal)* ")" | column op literal | literal op column
    op         := "=" | "==" | "!=" | "<>" | "<" | "<=" | ">" | ">="
    literal    := whole number | decimal number | 'text' | "text" | true | false

Names are letters, digits and _, or anything between backticks; case matters only where two columns differ by it.
"not" is resolved while reading, so what remains are plain conditions, none of which an empty value passes, but
``is null``: the answer is SQL's on engines that treat empty values otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa

from consilience.errors import InputError, unknown

Kind = Literal["int", "float", "text", "bool"]
Value = int | float | str | bool
LONGEST, DEEPEST = 100_000, 50

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![A-Za-z_0-9.])|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"""
    r"""|`(?P<quoted>[^`]+)`|'(?P<single>(?:[^']|'')*)'|"(?P<double>(?:[^"]|"")*)"|(?P<sign><=|>=|<>|!=|==|[=<>(),-]))"""
)
_NEGATED = {"=": "!=", "!=": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
_FLIPPED = {"=": "=", "!=": "!=", "<": ">", ">": "<", "<=": ">=", ">=": "<="}
_WORDS = {"and", "or", "not", "in", "is", "null", "true", "false"}


@dataclass(frozen=True)
class Compare:
    """``column op value``."""

    column: str
    op: str
    value: Value


@dataclass(frozen=True)
class Among:
    """``column [not] in (values)``."""

    column: str
    values: tuple[Value, ...]
    negated: bool = False


@dataclass(frozen=True)
class Empty:
    """``column is [not] null``."""

    column: str
    negated: bool = False


@dataclass(frozen=True)
class Joined:
    """Conditions of which all (``and``) or any (``or``) must hold; none at all: true for ``and``, false for ``or``."""

    word: str
    parts: tuple[Node, ...]


Node = Compare | Among | Empty | Joined


def kind_of(name: str, kind: pa.DataType) -> Kind:
    """How a store keeps a column of this Arrow type; InputError for types that no filter compares."""
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return "int"
    if pa.types.is_floating(kind):
        return "float"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    if pa.types.is_boolean(kind):
        return "bool"
    raise InputError(f"column {name!r} is {kind}; attributes of a store are text, numbers or true/false")


def parse(where: str, columns: Mapping[str, Kind]) -> Node:
    """The filter as a tree over ``columns`` (name to kind). InputError, with the place, for everything that is not in
    the grammar above, for columns that are not there and for values of another kind than their column."""
    if len(where) > LONGEST:
        raise InputError(f"the filter has {len(where)} letters; at most {LONGEST} are read")
    return _Reader(where, columns).whole()


def to_postgres(node: Node) -> tuple[str, list[Value]]:
    """An SQL condition with a ``%s`` for every value, and the values. Columns are quoted names."""
    values: list[Value] = []

    def hold(value: Value) -> str:
        values.append(value)
        return "%s"

    text = _write(node, _sql_name, hold, "=", lambda name, held, no: f"{name} {'not ' * no}in ({held})", "true")
    return text, values


def to_milvus(node: Node) -> str:
    """A boolean expression of Milvus. InputError for text with control characters, which it has no way to write."""
    return _write(
        node, str, _milvus_value, "==", lambda name, held, no: f"{name} {'not ' * no}in [{held}]", None
    )  # fmt: skip


def _write(
    node: Node,
    name: Callable[[str], str],
    hold: Callable[[Value], str],
    equals: str,
    among: Callable[[str, str, bool], str],
    true: str | None,
) -> str:
    if isinstance(node, Joined):
        parts = [_write(part, name, hold, equals, among, true) for part in node.parts]
        if parts:
            return "(" + f" {node.word} ".join(parts) + ")"
        if true is not None:
            return true if node.word == "and" else f"not {true}"
        return "index >= 0" if node.word == "and" else "index < 0"  # keys are never negative
    column = name(node.column)
    if isinstance(node, Empty):
        return f"{column} is {'not ' * node.negated}null"
    # what an empty value gives under "differs" is said outright: engines disagree on it
    full = f"{column} is not null and "
    if isinstance(node, Among):
        text = among(column, ", ".join(hold(value) for value in node.values), node.negated)
        return f"({full}{text})" if node.negated else text
    text = f"{column} {equals if node.op == '=' else node.op} {hold(node.value)}"
    return f"({full}{text})" if node.op == "!=" else text


def _sql_name(name: str) -> str:
    return '"' + name.replace('"', '""').replace("%", "%%") + '"'


def _milvus_value(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return repr(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    for letter, written in (("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        escaped = escaped.replace(letter, written)
    if any(ord(letter) < 32 for letter in escaped):
        raise InputError(f"text {value!r} of the filter has control characters; compare with plain text")
    return f'"{escaped}"'


def _negate(node: Node) -> Node:
    if isinstance(node, Compare):
        return replace(node, op=_NEGATED[node.op])
    if isinstance(node, Joined):
        return Joined("or" if node.word == "and" else "and", tuple(_negate(part) for part in node.parts))
    return replace(node, negated=not node.negated)


class _Reader:
    """Recursive descent over the words of one filter."""

    def __init__(self, where: str, columns: Mapping[str, Kind]) -> None:
        self.where, self.columns, self.depth = where, columns, 0
        self.words: list[tuple[str, str]] = []
        at = 0
        while where[at:].strip():
            match = _TOKEN.match(where, at)
            if match is None or match.lastgroup is None:
                raise self._refuse(f"cannot read {where[at:].strip()[:20]!r}")
            kind, text = match.lastgroup, match[match.lastgroup]
            if kind == "name" and text.lower() in _WORDS:
                kind, text = "word", text.lower()
            elif kind == "sign":
                text = {"==": "=", "<>": "!="}.get(text, text)
            elif kind in ("single", "double"):
                kind, text = "text", text.replace("''", "'") if kind == "single" else text.replace('""', '"')
            self.words.append(("name" if kind == "quoted" else kind, text))
            at = match.end()
        self.at = 0

    def whole(self) -> Node:
        node = self._any()
        if self.at < len(self.words):
            raise self._refuse(f"{self.words[self.at][1]!r} is not expected there")
        return node

    def _any(self) -> Node:
        self.depth += 1
        if self.depth > DEEPEST:
            raise self._refuse(f"more than {DEEPEST} parentheses and negations inside each other")
        parts = [self._all()]
        while self._take("word", "or"):
            parts.append(self._all())
        self.depth -= 1
        return parts[0] if len(parts) == 1 else Joined("or", tuple(parts))

    def _all(self) -> Node:
        parts = [self._one()]
        while self._take("word", "and"):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else Joined("and", tuple(parts))

    def _one(self) -> Node:
        negated = False
        while self._take("word", "not"):
            negated = not negated
        node = self._plain()
        return _negate(node) if negated else node

    def _plain(self) -> Node:
        if self._take("sign", "("):
            node = self._any()
            self._need("sign", ")")
            return node
        if self._peek()[0] != "name":
            value = self._literal()
            if self._peek()[0] == "sign" and self._peek()[1] in _FLIPPED:
                op = _FLIPPED[self._next()[1]]
                column = self._column()
                return Compare(column, op, self._fitting(column, value))
            if isinstance(value, bool):
                return Joined("and" if value else "or", ())
            raise self._refuse(f"{value!r} is not compared with anything")
        column = self._column()
        if self._take("word", "is"):
            negated = self._take("word", "not")
            self._need("word", "null")
            return Empty(column, negated)
        negated = self._take("word", "not")
        if negated or self._peek() == ("word", "in"):
            self._need("word", "in")
            self._need("sign", "(")
            values = [self._fitting(column, self._literal())]
            while self._take("sign", ","):
                values.append(self._fitting(column, self._literal()))
            self._need("sign", ")")
            return Among(column, tuple(values), negated)
        if self._peek()[0] == "sign" and self._peek()[1] in _FLIPPED:
            op = self._next()[1]
            return Compare(column, op, self._fitting(column, self._literal()))
        if self.columns[column] != "bool":
            raise self._refuse(f"{column} is {self.columns[column]}; compare it with a value")
        return Compare(column, "=", True)

    def _column(self) -> str:
        kind, name = self._next()
        if kind != "name":
            raise self._refuse(f"{name!r} stands where the name of a column is expected")
        if name in self.columns:
            return name
        alike = [known for known in self.columns if known.lower() == name.lower()]
        if len(alike) != 1:
            raise unknown("column of the filter", name, self.columns)
        return alike[0]

    def _literal(self) -> Value:
        negative = self._take("sign", "-")
        kind, text = self._next()
        if kind == "number":
            value: int | float = int(text) if text.isdigit() and len(text) < 40 else float(text)
            if value in (float("inf"), float("-inf")):
                raise self._refuse(f"{text[:20]} is too large")
            return -value if negative else value
        if kind == "text" and not negative:
            return text
        if (kind, text) in (("word", "true"), ("word", "false")) and not negative:
            return text == "true"
        hint = "; write: is null" if text == "null" else "; columns are compared with values only"
        raise self._refuse(f"{text!r} is no value" + (hint if kind in ("name", "word") else ""))

    def _fitting(self, column: str, value: Value) -> Value:
        kind = self.columns[column]
        given = {bool: "bool", int: "int", float: "float", str: "text"}[type(value)]
        if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if kind == "int" and isinstance(value, float) and value.is_integer():
            value, given = int(value), "int"
        if kind != given:
            raise self._refuse(f"{column} is {kind}, {value!r} is {given}")
        if given == "int" and not -(2**63) <= value < 2**63:  # type: ignore[operator]
            raise self._refuse(f"{value} does not fit 64 bits")
        if isinstance(value, str) and "\0" in value:
            raise self._refuse("text with a zero byte is found nowhere")
        return value

    def _peek(self) -> tuple[str, str]:
        return self.words[self.at] if self.at < len(self.words) else ("end", "")

    def _next(self) -> tuple[str, str]:
        if self.at >= len(self.words):
            raise self._refuse("it ends too early")
        self.at += 1
        return self.words[self.at - 1]

    def _take(self, kind: str, text: str) -> bool:
        found = self._peek() == (kind, text)
        self.at += found
        return found

    def _need(self, kind: str, text: str) -> None:
        if not self._take(kind, text):
            raise self._refuse(f"{text!r} is expected" + (f" before {self._peek()[1]!r}" if self._peek()[1] else ""))

    def _refuse(self, reason: str) -> InputError:
        shown = self.where if len(self.where) <= 80 else self.where[:77] + "..."
        reason = reason if len(reason) <= 120 else reason[:117] + "..."
        return InputError(
            f"filter {shown!r} does not fit a remote store: {reason}; write comparisons of columns with values, "
            "and, or, not, in, is null and parentheses"
        )
