"""Reads SQL that people wrote before the engine runs it.

The engine's `readonly` mode refuses writes, DDL and table functions that reach files or the network, but it lets through
`INTO OUTFILE` (the embedded engine then writes the file), `USE`, `KILL`, `GRANT` and `BACKUP`: those are refused here.
All functions take text as the engine's own parser prints it (`formatQuerySingleLine`): one statement, no comments.
"""

import re

from ..pipeline.errors import Rejected

_ALLOWED = frozenset({"SELECT", "WITH", "SHOW", "DESCRIBE", "EXISTS", "EXPLAIN"})
_QUOTED = re.compile(r"'(?:\\.|[^'\\])*'|`(?:\\.|[^`\\])*`|\"(?:\\.|[^\"\\])*\"", re.DOTALL)
_OUTFILE = re.compile(r"\bINTO OUTFILE\b")
_FORMAT = re.compile(r"\bFORMAT \w+$")
_PARALLEL = re.compile(r"\bPARALLEL WITH\b")
_NAME = re.compile(r"[\w.]+")


def check_read_only(canonical: str) -> None:
    """Raises `Rejected` where the statement could do anything but read."""
    bare = _without_quoted(canonical)
    first = bare.split(None, 1)[0].lstrip("(").upper()
    if first not in _ALLOWED:
        raise Rejected(
            f"{first} is not run here: costs are read only, and nothing was changed. Ask with SELECT, WITH, SHOW, "
            "DESCRIBE, EXISTS or EXPLAIN.",
            code="read_only",
        )
    if _OUTFILE.search(bare):
        raise Rejected(
            "INTO OUTFILE is not run here and no file was written: costs are read only. Redirect the output of "
            "`inference-engine sql --format csv` instead.",
            code="read_only",
        )
    if _PARALLEL.search(bare):
        raise Rejected("PARALLEL WITH is not run here: ask for one thing at a time.", code="read_only")
    if _FORMAT.search(bare):
        raise Rejected("Leave FORMAT out of the SQL: `--format json`, `csv` or `tsv` chooses the output.", code="bad_sql")


def with_nullable_division(canonical: str) -> str:
    """Every `a / b` as `a / nullIf(b, 0)`.

    The engine has no value for a decimal divided by zero and fails the whole query: one feature answered from the cache
    alone (cost 0) would otherwise break the return on investment of all the others.
    """
    text = canonical
    position = len(text)
    while (position := _without_quoted(text).rfind(" / ", 0, position)) >= 0:
        start = position + 3
        end = _operand_end(_without_quoted(text), start)
        text = f"{text[:start]}nullIf({text[start:end]}, 0){text[end:]}"
    return text


def _without_quoted(text: str) -> str:
    """The same length, with the contents of literals and quoted names blanked out."""
    return _QUOTED.sub(lambda match: "q" * len(match.group()), text)


def _operand_end(bare: str, start: int) -> int:
    """Where the operand that begins at `start` ends: a name or number, calls and parentheses included."""
    name = _NAME.match(bare, start)
    end = name.end() if name else start
    while end < len(bare) and bare[end] in "([":
        end = _closing(bare, end)
    return end


def _closing(bare: str, opening: int) -> int:
    depth = 0
    for index in range(opening, len(bare)):
        if bare[index] in "([":
            depth += 1
        elif bare[index] in ")]":
            depth -= 1
            if depth == 0:
                return index + 1
    return len(bare)
