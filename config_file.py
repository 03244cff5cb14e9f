"""The user's configuration file, changed key by key: its comments, its order and the rest of its text stay.

PyYAML tells where in the text each key and value stands. Only that piece of the text is replaced, and the result is
read again: a change that does not give exactly the wanted configuration is not written.
"""

import copy
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from plimsoll import config
from plimsoll.errors import ConfigError

Key = tuple[str, ...]
"""A path of keys, such as ("models", "entries", "small", "pin")."""
Change = tuple[Key, Any]
"""A key with its new value; ``REMOVED`` takes the key out."""
REMOVED = object()
_INDENT = 2


def change(path: Path, changes: Sequence[Change]) -> None:
    """Make all ``changes`` in the file, or none of them. A file that is not there is made.

    Raises ``ConfigError`` where the result would not be a configuration, or can't be written.
    """
    path = path.resolve()
    try:
        before = path.read_bytes().decode() if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read: {error}") from None
    after = edited(before, changes, origin=str(path))
    if after != before:
        _replace(path, after)


def edited(text: str, changes: Sequence[Change], origin: str = "config") -> str:
    """``text`` with the changes made. Raises ``ConfigError`` as ``change`` does."""
    wanted = config.read_text(text, origin)
    for key, value in changes:
        wanted = _with(wanted, key, value)
    config.parse(wanted, origin)
    try:
        for key, value in changes:
            text = _removed(text, key) if value is REMOVED else _set(text, key, value)
        is_exact = (yaml.safe_load(text) or {}) == wanted
    except yaml.YAMLError:
        is_exact = False
    if not is_exact:
        names = ", ".join(".".join(key) for key, _ in changes)
        raise ConfigError(f"{origin}: {names} can't be changed in the way the file is written; change it by hand")
    return text


def _replace(path: Path, text: str) -> None:
    """Write the file so that it is whole at every moment."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(mode)
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: can't be written: {error.strerror}") from None


def _with(data: dict[str, Any], key: Key, value: Any) -> dict[str, Any]:
    """``data`` with one key changed; a mapping that a removal leaves empty goes, too."""
    changed = copy.copy(data)
    first, rest = key[0], key[1:]
    if rest:
        inner = changed.get(first)
        inner = _with(inner if isinstance(inner, dict) else {}, rest, value)
        if inner or value is not REMOVED:
            changed[first] = inner
        else:
            changed.pop(first, None)
    elif value is REMOVED:
        changed.pop(first, None)
    else:
        changed[first] = value
    return changed


def _set(text: str, key: Key, value: Any) -> str:
    path = _nodes(text, key)
    if len(path) == len(key):
        return _with_value(text, path[-1][1], value, path[-1][0].start_mark.column)
    missing, rest = key[len(path)], key[len(path) + 1 :]
    for name in reversed(rest):
        value = {name: value}
    if not path:
        return _with_first_lines(text, _block({missing: value}, 0), yaml.compose(text, yaml.SafeLoader))
    key_node, parent = path[-1]
    if not isinstance(parent, yaml.MappingNode) or not parent.value:
        return _with_value(text, parent, {missing: value}, key_node.start_mark.column)
    if parent.flow_style:
        end = parent.end_mark.index - 1
        return f"{text[:end].rstrip()}, {_flow({missing: value})[1:-1]}{text[end:]}"
    return _with_lines(text, _end(parent), _block({missing: value}, parent.start_mark.column))


def _with_first_lines(text: str, lines: str, root: yaml.Node | None) -> str:
    if isinstance(root, yaml.MappingNode) and root.value:
        return _with_lines(text, _end(root), lines)
    if isinstance(root, yaml.MappingNode):
        return text[: root.start_mark.index] + lines + text[root.end_mark.index :].lstrip("\n")
    return f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}{lines}"


def _with_value(text: str, node: yaml.Node, value: Any, column: int) -> str:
    """``text`` with another value in the place of ``node``, whose key stands at ``column``."""
    start, end = node.start_mark.index, _end(node)
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        return f"{text[:start]}{_flow(value)}\n{text[node.end_mark.index :]}"
    if start == end and isinstance(value, dict):  # nothing stands behind the colon
        return _with_lines(text, start, _block(value, column + _INDENT))
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        # It begins on a line of its own: the value moves up behind its key's colon.
        start = len(text[:start].rstrip())
    gap = "" if text[start - 1 : start].isspace() else " "
    return f"{text[:start]}{gap}{_flow(value)}{text[end:]}"


def _with_lines(text: str, index: int, lines: str) -> str:
    """``text`` with ``lines`` behind the line in which ``index`` is."""
    line_end = text.find("\n", index) + 1
    if not line_end:
        return f"{text}\n{lines}"
    if index and text[index - 1] == "\n":  # a text of several lines ends where the next line begins
        line_end = index
    return f"{text[:line_end]}{lines}{text[line_end:]}"


def _removed(text: str, key: Key) -> str:
    path = _nodes(text, key)
    if len(path) < len(key):
        return text
    parents: list[Any] = [yaml.compose(text, yaml.SafeLoader), *(node for _, node in path)]
    # What would be left empty goes as well.
    depth = len(key)
    while depth > 1 and len(parents[depth - 1].value) == 1:
        depth -= 1
    key_node, node = path[depth - 1]
    parent = parents[depth - 1]
    start, end = key_node.start_mark.index, _end(node)
    if parent.flow_style:
        behind = text[end:].lstrip()
        if behind.startswith(","):
            return text[:start] + behind[1:].lstrip()
        return text[:start].rstrip().rstrip(",") + text[end:]
    line_start = text.rfind("\n", 0, start) + 1
    line_end = end if text[end - 1] == "\n" else text.find("\n", end) + 1
    return text[:line_start] + (text[line_end:] if line_end else "")


def _nodes(text: str, key: Key) -> list[tuple[yaml.Node, yaml.Node]]:
    """The nodes of key and value for each step of ``key`` that is in the file."""
    node: yaml.Node | None = yaml.compose(text, yaml.SafeLoader)
    found: list[tuple[yaml.Node, yaml.Node]] = []
    for name in key:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        pair = next(((mine, its) for mine, its in pairs if mine.value == name), None)
        if pair is None:
            break
        found.append(pair)
        node = pair[1]
    return found


def _end(node: yaml.Node) -> int:
    """Where the text of a node ends. PyYAML has a block end at the next token, behind comments."""
    return max(leaf.end_mark.index for leaf in _leaves(node))


def _leaves(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        for child in node.value:
            for one in child if isinstance(child, tuple) else (child,):
                yield from _leaves(one)
    else:
        yield node


def _flow(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _block(value: dict[str, Any], column: int) -> str:
    """Nested mappings as lines at ``column``; what is inside the innermost of them is written in one line."""
    lines = []
    for name, inner in value.items():
        start = f"{' ' * column}{_flow(name)}:"
        if isinstance(inner, dict) and inner:
            lines.append(f"{start}\n{_block(inner, column + _INDENT)}")
        else:
            lines.append(f"{start} {_flow(inner)}\n")
    return "".join(lines)
