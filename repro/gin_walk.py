"""Reading Gin files statement by statement, to know where each binding stands before Gin composes them.

Gin itself keeps no place for a binding and reports typos poorly; this walk finds `file:line` for every statement,
follows includes the way Gin does, and names the nearest valid name where one is wrong.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gin import config_parser
from repro.errors import UsageError
from repro.suggest import suggest


@dataclasses.dataclass(frozen=True)
class Statement:
    """One binding `scope/selector.arg = value`, or a macro `selector = value` (then `arg` is '')."""

    scope: str
    selector: str
    arg: str
    file: str
    location: str
    references: tuple[tuple[str, str], ...]

    @property
    def is_macro(self) -> bool:
        return not self.arg

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.scope, self.selector, self.arg)

    @property
    def display(self) -> str:
        name = f"{self.selector}.{self.arg}" if self.arg else f"the macro {self.selector}"
        return f"{self.scope}/{name}" if self.scope else name


class _References(config_parser.ParserDelegate):  # type: ignore[misc]
    """Collects the @references and %macros that values name."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    def configurable_reference(self, scoped_name: str, evaluate: bool) -> Any:
        self.found.append(("class", scoped_name.split("/")[-1]))
        return scoped_name

    def macro(self, name: str) -> Any:
        self.found.append(("macro", name))
        return name


def read_file(root: Path, path: str, included_from: str = "") -> list[Statement]:
    """Every binding of a Gin file and its includes, in the order in which Gin applies them.

    Raises:
        UsageError: the file or an include of it is missing (names the include's file and line), or has a syntax error.
    """
    file = root / path
    if not file.is_file():
        others = [p.relative_to(root).as_posix() for p in root.rglob("*.gin")]
        where = f"{included_from}: include of" if included_from else "no Gin file"
        raise UsageError(f"{where} {path!r}{', which does not exist' if included_from else ''}{suggest(path, others)}")
    return _read(root, file.read_text(encoding="utf-8"), path)


def read_text(text: str, name: str) -> list[Statement]:
    """The statements of an expanded configuration (no includes are left in it); `name` stands in locations."""
    return _read(None, text, name)


def expand(root: Path, path: str, *, names: bool = False) -> str:
    """The text of a Gin file with its includes in place: what Gin parses, so that it searches for no file itself.

    Gin would look in the working directory first, where another copy of a row may lie. `names` puts each file's name
    before its text, as a comment: then equal results mean equal lines of equal files.
    """
    lines = [f"# {path}"] if names else []
    for line in (root / path).read_text(encoding="utf-8").splitlines():
        include = re.match(r"\s*include\s+(['\"])(.+?)\1", line)
        lines.append(expand(root, include.group(2), names=names) if include else line)
    return "\n".join(lines)


def read_bindings(bindings: Sequence[str]) -> list[Statement]:
    """The statements of `--gin` options; their file is '--gin'."""
    found: list[Statement] = []
    for binding in bindings:
        statements = _read(None, binding, "--gin")
        if not statements:
            raise UsageError(f"--gin {binding!r} binds nothing; write it as 'Class.parameter = value'")
        found += [dataclasses.replace(s, location=f"--gin {binding!r}") for s in statements]
    return found


def _read(root: Path | None, text: str, path: str) -> list[Statement]:
    delegate = _References()
    found: list[Statement] = []
    try:
        parser = config_parser.ConfigParser(text, delegate)
        for statement in parser:
            line = getattr(statement, "location", None)
            location = f"{path}:{line.line_num}" if line else path
            if isinstance(statement, config_parser.IncludeStatement):
                if root is None:
                    raise UsageError(f"{path}: an include is not possible here: {statement.filename!r}")
                found += read_file(root, statement.filename, included_from=location)
            elif isinstance(statement, config_parser.BindingStatement):
                # Gin names built-ins such as gin.macro by their module; the project's names are unique without one.
                references = tuple(delegate.found)
                selector = statement.selector.split(".")[-1]
                found.append(Statement(statement.scope, selector, statement.arg_name, path, location, references))
            elif isinstance(statement, config_parser.ImportStatement):
                raise UsageError(f"{location}: imports have no place in a Gin file of this project")
            delegate.found.clear()
    except SyntaxError as error:
        where = error.args[1].line_num if len(error.args) > 1 and hasattr(error.args[1], "line_num") else error.lineno
        raise UsageError(f"{path}:{where}: {error.args[0]} (values are Python literals, @Class or %MACRO)") from None
    except Exception as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path}: cannot be read as Gin: {error}") from None
    return found
