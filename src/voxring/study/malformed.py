"""What is wrong where a study file breaks the types of its tables: the key, what was expected, what came, the remedy.

msgspec says where; what belongs there is read off the types again, since it names neither the value that came nor the
names that there are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import msgspec
from msgspec import inspect

LONGEST = 60
"""Characters of a value that are shown."""


def malformed(error: msgspec.ValidationError, tables: object, kind: type[msgspec.Struct]) -> str:
    """Say what is wrong with tables that are none of a kind, in one line.

    Examples
    --------
    >>> from voxring.study import Privacy
    >>> try:
    ...     msgspec.convert({"min_voxels": 1}, Privacy)
    ... except msgspec.ValidationError as error:
    ...     malformed(error, {"min_voxels": 1}, Privacy)
    'min_voxels: expected a whole number of at least 2, got 1: write that, or leave it out for 2'
    """
    message, _, place = str(error).partition(" - at `")
    if place.startswith("key` in"):  # TOML has none, a dict of Python may
        return f"{place.strip('`').removeprefix('key` in `$.')}: expected names of text, got others: put them in quotes"
    path = re.findall(r"[^.\[\]]+|\[[^\]]*\]", place.rstrip("`").removeprefix("$"))
    whole = inspect.type_info(kind)
    if name := re.search(r"(?s)unknown field `(.*)`", message):
        return _unknown(name[1], path, _at(whole, path), whole)
    if name := re.search(r"missing required field `(.*)`", message):
        field = _fields(_at(whole, path))[name[1]]
        return f"{_key([*path, name[1]])}: expected {_words(field.type)}, got nothing: write {name[1]} = …"
    steps, value = list(path), tables
    for number, step in enumerate(path):
        steps[number], value = _entry(value, step, _at(whole, path[: number + 1]))
    return f"{_key(steps)}: {_misfit(value, _at(whole, path), _field(whole, path))}"


def _unknown(name: str, path: Sequence[str], table: inspect.Type, whole: inspect.Type) -> str:
    known = list(_fields(table))
    near = get_close_matches(name, known, 1)
    owners = [owner for owner, field in _fields(whole).items() if name in _fields(field.type)]
    if near:
        remedy = f"did you mean {near[0]}?"
    elif len(owners) == 1:
        remedy = f"it belongs to [{owners[0]}]"
    else:
        remedy = "leave it out"
    return f"{_key([*path, name])}: expected {_listed(known)}, got {_cut(name)}: {remedy}"


def _misfit(value: object, kind: inspect.Type, field: inspect.Field) -> str:
    # A key is not quoted: somebody may have pasted what is private.
    came = "something else" if field.name == "key" else _shown(value)
    given = [str(one) for option in _options(kind) if isinstance(option, inspect.LiteralType) for one in option.values]
    near = get_close_matches(value, given, 1) if isinstance(value, str) else []
    default = None if field.default in (msgspec.NODEFAULT, msgspec.UNSET, None, "") else field.default
    if near:
        remedy = f'did you mean "{near[0]}"?'
    elif isinstance(value, dict) and any(isinstance(_item(option), inspect.StructType) for option in _options(kind)):
        remedy = f"write [[{field.name}]], in two brackets"
    elif any(isinstance(option, inspect.StructType) for option in _options(kind)):
        remedy = f"write [{field.name}] and its keys below, or leave it out"
    elif field.required:
        remedy = "write that"
    elif default is None or isinstance(default, msgspec.Struct | tuple):
        remedy = "write that, or leave it out"
    else:
        remedy = f"write that, or leave it out for {_shown(default)}"
    return f"expected {_words(kind)}, got {came}: {remedy}"


# Where it is.


def _at(kind: inspect.Type, path: Sequence[str]) -> inspect.Type:
    for step in path:
        kind = _item(kind) if step.startswith("[") else _fields(kind)[step].type
    return kind


def _field(whole: inspect.Type, path: Sequence[str]) -> inspect.Field:
    """The last field on the way."""
    last = max(number for number, step in enumerate(path) if not step.startswith("["))
    return _fields(_at(whole, path[:last]))[path[last]]


def _entry(value: Any, step: str, kind: inspect.Type) -> tuple[str, object]:
    """What stands at a step, and the name of it; for ``[...]``, any name of a table, the first that does not fit."""
    if step == "[...]":
        name = next(name for name, one in value.items() if not any(_fits(one, option) for option in _options(kind)))
        return name, value[name]
    return step, value[int(step[1:-1])] if step.startswith("[") else value[step]


def _fits(value: object, kind: inspect.Type) -> bool:
    if isinstance(kind, inspect.IntType):
        return type(value) is int and (kind.ge is None or value >= kind.ge)
    return isinstance(value, str)


def _options(kind: inspect.Type) -> Iterator[inspect.Type]:
    for option in kind.types if isinstance(kind, inspect.UnionType) else (kind,):
        if not isinstance(option, inspect.NoneType):
            yield option


def _item(kind: inspect.Type) -> inspect.Type:
    """What a list or a table of any names holds."""
    for option in _options(kind):
        if isinstance(option, inspect.VarTupleType):
            return option.item_type
        if isinstance(option, inspect.TupleType):
            return option.item_types[0]
        if isinstance(option, inspect.DictType):
            return option.value_type
    return inspect.NoneType()


def _fields(kind: inspect.Type) -> Mapping[str, inspect.Field]:
    """The keys of a table, also of one that may be left out or stand several times."""
    tables = [one for one in (*_options(kind), _item(kind)) if isinstance(one, inspect.StructType)]
    return {field.name: field for table in tables for field in table.fields}


# In words.


def _words(kind: inspect.Type) -> str:
    return ", or ".join(_word(option) for option in _options(kind))


def _word(kind: inspect.Type) -> str:
    match kind:
        case inspect.IntType():
            several = f" that is a multiple of {kind.multiple_of}" if kind.multiple_of else ""
            return f"a whole number{_range(kind)}{several}"
        case inspect.FloatType():
            return f"a number{_range(kind)}"
        case inspect.BoolType():
            return "true or false"
        case inspect.StrType():
            return "text" if kind.pattern is None else 'a fraction such as "355/113"'
        case inspect.LiteralType():
            return _listed([json.dumps(value) for value in kind.values])
        case inspect.TupleType():
            return f"{len(kind.item_types)} numbers in brackets"
        case inspect.VarTupleType() if isinstance(kind.item_type, inspect.StructType):
            return "tables"
        case inspect.VarTupleType():
            count = "numbers" if kind.min_length is None else f"{kind.min_length} or {kind.max_length} such"
            return f"{count} in brackets"
        case inspect.DictType():
            return "a table of one for each class"
    return "a table"


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.ge is None:
        return ""
    return f" of at least {kind.ge}" if kind.le is None else f" from {kind.ge} to {kind.le}"


def _listed(names: Sequence[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _key(path: Sequence[str]) -> str:
    return "".join(_cut(step) if step.startswith("[") else f".{_cut(step)}" for step in path).lstrip(".")


def _shown(value: object) -> str:
    if value is None or isinstance(value, dict):
        return "nothing" if value is None else "a table"
    return _cut(json.dumps(value, ensure_ascii=False, default=lambda other: type(other).__name__))


def _cut(text: str) -> str:
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= LONGEST else line[:LONGEST] + "…"
