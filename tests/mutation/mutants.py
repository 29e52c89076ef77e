"""Lists the mutants of source files: what mutmut's operators change, less what is no behaviour.

Left out by rule, because a test that caught it would check nothing a user relies on:
  annotations, imports, decorators, docstrings, `assert`, `if TYPE_CHECKING`, `__all__`, `TypeVar` and `cast`;
  `__repr__` and `__str__`; everything inside `raise`; calls that warn, log or print; help texts, titles and labels of plots,
  and string literals of three words or more;
and, because they fail wherever they are executed and would measure line coverage only: values replaced by None, and
positional arguments removed.

Two operators are added to mutmut's: a call whose value is unused is removed, and the condition of an `if` is negated.
A third of the places are short string literals, mostly keys whose change fails at once; one in three of those is kept.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation import mutators

_SILENT_CALLS = {
    "print",
    "warn",
    "warning",
    "info",
    "debug",
    "error",
    "exception",
    "log",
    "say",
    "cast",
    "TypeVar",
    "NewType",
}
_WORDS_ARGUMENTS = {
    "help",
    "description",
    "metavar",
    "epilog",
    "summary",
    "title",
    "xlabel",
    "ylabel",
    "label",
    "color",
}
_PROSE = 3  # words: a literal of so many is text for people
_STRINGS_KEPT = 1 / 3
_REPR = {"__repr__", "__str__"}
_EXCLUDED_OPERATORS = {"operator_assignment", "operator_lambda", "operator_dict_arguments"}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change of one file. `statement` and `scope` are first and last lines: of the innermost statement (a compound one's
    header), and of the function whose header it is in (else the statement again). `defines` is a name that the statement
    assigns at module or class level."""

    path: str
    line: int
    column: int
    operator: str
    variant: int
    statement: tuple[int, int]
    scope: tuple[int, int]
    defines: str | None
    source: str  # of the mutated file

    @property
    def key(self) -> str:
        return f"{self.path}:{self.line}:{self.column}:{self.operator}:{self.variant}"


@dataclasses.dataclass
class _Site:
    node: cst.CSTNode
    operator: str
    variants: list[cst.CSTNode]
    line: int
    column: int
    statement: tuple[int, int]
    scope: tuple[int, int]
    defines: str | None


def _remove_call(node: cst.SimpleStatementLine) -> Iterator[cst.CSTNode]:
    if len(node.body) == 1 and isinstance(node.body[0], cst.Expr) and isinstance(node.body[0].value, cst.Call):
        yield node.with_changes(body=[cst.Pass()])


def _negate_condition(node: cst.If) -> Iterator[cst.CSTNode]:
    inner = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    yield node.with_changes(test=cst.UnaryOperation(cst.Not(), inner), whitespace_before_test=cst.SimpleWhitespace(" "))


_OPERATORS = [
    *(pair for pair in mutators.mutation_operators if pair[1].__name__ not in _EXCLUDED_OPERATORS),
    (cst.SimpleStatementLine, _remove_call),
    (cst.If, _negate_condition),
]


def _variants(node: cst.CSTNode, operator) -> list[cst.CSTNode]:
    if operator.__name__ == "operator_arg_removal":
        keywords = [i for i, argument in enumerate(node.args) if argument.keyword]
        shorter = [[*node.args[:i], *node.args[i + 1 :]] for i in keywords]
        return [node.with_changes(args=arguments) for arguments in shorter if len(node.args) > 1]
    variants = list(operator(node))
    return variants[:1] if operator.__name__ == "operator_string" else variants  # upper and lower case add nothing


def _last_name(node: cst.CSTNode) -> str:
    if isinstance(node, cst.Attribute):
        return node.attr.value
    return node.value if isinstance(node, cst.Name) else ""


def _is_no_behaviour(node: cst.CSTNode) -> bool:
    if isinstance(node, cst.Annotation | cst.Import | cst.ImportFrom | cst.Decorator | cst.Assert | cst.Raise):
        return True
    if isinstance(node, cst.Expr):
        return isinstance(node.value, cst.SimpleString | cst.ConcatenatedString)
    if isinstance(node, cst.SimpleString):
        return len(node.value.split()) >= _PROSE
    if isinstance(node, cst.Call):
        return _last_name(node.func) in _SILENT_CALLS
    if isinstance(node, cst.Arg):
        return node.keyword is not None and node.keyword.value in _WORDS_ARGUMENTS
    if isinstance(node, cst.FunctionDef):
        return node.name.value in _REPR
    if isinstance(node, cst.If):
        return _last_name(node.test) == "TYPE_CHECKING"
    if isinstance(node, cst.Assign):
        return _last_name(node.targets[0].target) == "__all__"
    return False


class _Finder(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self):
        self.sites: list[_Site] = []
        self.statements: list[tuple[tuple[int, int], tuple[int, int], str | None]] = [((0, 0), (0, 0), None)]
        self.functions = 0

    def _lines(self, node: cst.CSTNode) -> tuple[int, int]:
        position = self.get_metadata(PositionProvider, node)
        return position.start.line, position.end.line

    def _enter_statement(self, node: cst.CSTNode) -> None:
        first, last = self._lines(node)
        scope, defines = (first, last), None
        if isinstance(node, cst.SimpleStatementLine):
            assignment = node.body[0]
            if not self.functions and isinstance(assignment, cst.Assign | cst.AnnAssign):
                target = assignment.target if isinstance(assignment, cst.AnnAssign) else assignment.targets[0].target
                defines = _last_name(target) or None
        elif isinstance(node, cst.BaseCompoundStatement):
            last = max(first, self._lines(node.body)[0] - 1) if hasattr(node, "body") else first
        if not isinstance(node, cst.FunctionDef):
            scope = (first, last)
        self.statements.append(((first, last), scope, defines))

    def on_visit(self, node: cst.CSTNode) -> bool:
        if _is_no_behaviour(node):
            return False
        if isinstance(node, cst.SimpleStatementLine | cst.BaseCompoundStatement):
            self._enter_statement(node)
        self.functions += isinstance(node, cst.FunctionDef)
        statement, scope, defines = self.statements[-1]
        for kind, operator in _OPERATORS:
            if not isinstance(node, kind):
                continue
            variants = _variants(node, operator)
            position = self.get_metadata(PositionProvider, node, None)
            if operator is _remove_call and _is_no_behaviour_call(node):
                continue
            if variants:
                line, column = (position.start.line, position.start.column) if position else (statement[0], 0)
                name = operator.__name__.removeprefix("operator_").strip("_")
                self.sites.append(_Site(node, name, variants, line, column, statement, scope, defines))
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if _is_no_behaviour(original_node):
            return
        if isinstance(original_node, cst.SimpleStatementLine | cst.BaseCompoundStatement):
            self.statements.pop()
        self.functions -= isinstance(original_node, cst.FunctionDef)


def _is_no_behaviour_call(node: cst.SimpleStatementLine) -> bool:
    expression = node.body[0]
    return isinstance(expression, cst.Expr) and _is_no_behaviour(expression.value)


def sample(root: Path, files: list[str], seed: int) -> Iterator[Mutant]:
    """Mutants of `files` (relative to `root`) in random order: for each place and operator, one of its variants."""
    random_ = random.Random(f"mutants {seed}")
    sites = []
    modules = {}
    for path in sorted(files):
        wrapper = MetadataWrapper(cst.parse_module((root / path).read_text()))
        finder = _Finder()
        wrapper.visit(finder)
        modules[path] = wrapper.module
        sites += [
            (path, site) for site in finder.sites if site.operator != "string" or random_.random() < _STRINGS_KEPT
        ]
    random_.shuffle(sites)
    for path, site in sites:
        variant = random_.randrange(len(site.variants))
        source = modules[path].deep_replace(site.node, site.variants[variant]).code
        try:
            compile(source, path, "exec")
        except SyntaxError:  # two of the operators' changes in a thousand
            continue
        place = (path, site.line, site.column, site.operator, variant, site.statement, site.scope, site.defines)
        yield Mutant(*place, source=source)
