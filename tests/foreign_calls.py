"""Calls into a library, read out of a source, and bound to the library's real signatures."""

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Instance:
    """An object that exists only on a machine with a GPU: its class stands for it."""

    of: Any


@dataclass(frozen=True)
class Call:
    line: int
    text: str
    callee: Any
    args: int
    """Positional arguments, ``self`` included."""
    keywords: tuple[str, ...]

    @property
    def swallowed(self) -> set[str]:
        """Keywords that only a ``**kwargs`` takes."""
        parameters = signature_of(self.callee).parameters.values()
        named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
        return set(self.keywords) - named if anything else set()


class ForeignCalls(ast.NodeVisitor):
    """Follows a library's names through a file: imports, attributes, classes, and what methods return.

    Every attribute on the way must exist; `calls` holds what is called. ``known`` gives what the file's own functions
    return (or a function of the call's first argument), ``returns`` what methods return, ``spread`` the mappings that
    are handed on by ``**``; any other is refused, since its words cannot be read.
    """

    def __init__(self, library: str, known: dict[str, Any], returns: dict[Any, Any],
                 spread: dict[str, dict[str, Any]]) -> None:
        self.library = library
        self.spread = spread
        self.known = known
        self.returns = returns
        self.names: dict[str, Any] = {}
        self.calls: list[Call] = []

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name.split(".")[0] == self.library:
                module = importlib.import_module(alias.name)
                self.names[alias.asname or self.library] = module if alias.asname else sys.modules[self.library]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level == 0 and node.module and node.module.split(".")[0] == self.library:
            for alias in node.names:
                self.names[alias.asname or alias.name] = getattr(importlib.import_module(node.module), alias.name)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """A function's names are its own; what it gives an object, ``self.pipe``, stays."""
        outside, own = self.names, {argument.arg for argument in [*node.args.args, *node.args.kwonlyargs]}
        self.names = {name: value for name, value in outside.items() if name not in own}
        self.generic_visit(node)
        self.names = outside | {name: value for name, value in self.names.items() if "." in name}

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        targets = node.targets[0].elts if isinstance(node.targets[0], ast.Tuple) else [node.targets[0]]
        one_by_one = isinstance(node.value, ast.Tuple) and len(node.value.elts) == len(targets)
        values = node.value.elts if one_by_one else [node.value] * len(targets)
        for target, value in zip(targets, values, strict=True):
            found = self.resolve(value)
            if found is not None and isinstance(target, ast.Name | ast.Attribute):
                self.names[ast.unparse(target)] = found

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            self.visit(item.context_expr)
            found = self.resolve(item.context_expr)
            if found is not None and isinstance(item.optional_vars, ast.Name):
                self.names[item.optional_vars.id] = found
        for statement in node.body:
            self.visit(statement)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.resolve(node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        callee = self.resolve(node.func)
        if callee is not None:
            holder = self.resolve(node.func.value) if isinstance(node.func, ast.Attribute) else callee
            method = isinstance(holder, Instance)
            self.calls.append(Call(
                node.lineno, ast.unparse(node.func), callee.of.__call__ if isinstance(callee, Instance) else callee,
                len(node.args) + method, tuple(self.words(node))))
        self.generic_visit(node)

    def words(self, node: ast.Call) -> Iterator[str]:
        for word in node.keywords:
            if word.arg:
                yield word.arg
            else:
                assert ast.unparse(word.value) in self.spread, f"line {node.lineno}: **{ast.unparse(word.value)}"
                yield from self.spread[ast.unparse(word.value)]

    def resolve(self, node: ast.expr) -> Any:
        """What an expression is, or None where it is not the library's. Raises `AttributeError` for what is not there.
        """
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.IfExp):
            return self.resolve(node.body)
        if isinstance(node, ast.GeneratorExp):
            return self.resolve(node.elt)
        if isinstance(node, ast.Attribute):
            if ast.unparse(node) in self.names:  # self.something
                return self.names[ast.unparse(node)]
            holder = self.resolve(node.value)
            return None if holder is None else getattr(holder.of if isinstance(holder, Instance) else holder, node.attr)
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in self.known:
                found = self.known[node.func.id]
                return found(ast.literal_eval(node.args[0])) if inspect.isfunction(found) else found
            callee = self.resolve(node.func)
            if inspect.isclass(callee):
                return Instance(callee)
            return self.returns.get(callee) if isinstance(callee, Hashable) else None  # some compiled methods are not
        return None


def calls_of(source: str, library: str, known: dict[str, Any] | None = None, returns: dict[Any, Any] | None = None,
             spread: dict[str, dict[str, Any]] | None = None) -> list[Call]:
    visitor = ForeignCalls(library, known or {}, returns or {}, spread or {})
    visitor.visit(ast.parse(source))
    return visitor.calls


def bind(call: Call) -> None:
    """Raises `TypeError` where the callee would not take the arguments."""
    signature_of(call.callee).bind(*[None] * call.args, **dict.fromkeys(call.keywords))


def signature_of(callee: Any) -> inspect.Signature:
    """Of a compiled class or method too: Cython writes it into the first line of the docstring."""
    try:
        return inspect.signature(callee)
    except ValueError:
        head = re.match(r"[\w.]+\((.*)\)", (callee.__doc__ or "").splitlines()[0])
        if head is None:
            raise
        words = re.sub(r"(?:^|(?<=, ))(?:\w+ )(?=\w)", "", head[1])  # "str code=None" → "code=None"
        space: dict[str, Any] = {}
        exec(f"from __future__ import annotations\ndef f({words}): ...", space)
        return inspect.signature(space["f"])
