"""The ``$`` expressions that a config may hold: an allow-list, read with ``ast`` and never evaluated."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

from bundle_configs import walk

RULE = (
    "'$' is for imports, attributes of a component ('$@loss.in_loss'), .to(@device, …), .parameters(), .run(), "
    "path joins ('$@run_dir + '/model.pt''), a number times a value, len(@…), operator.lt and "
    "monai.utils.set_determinism(seed=@seed); nothing else"
)
METHODS = {"to", "parameters", "run"}  # of components
FUNCTIONS = {"len", "monai.utils.set_determinism"}
NAMES = {"operator.lt", "operator.gt", "torch.channels_last_3d"}  # that stand for values
REFERENCE = re.compile(r"@[\w#:]+")
PLACE = "component"  # what a reference becomes, so that Python can parse the expression
POSITION = re.compile(r"(?:^|[@%#])[\w#]*#\d+(?:#|$|\b)")


def is_allowed(expression: str) -> bool:
    """Whether an expression (with its ``$``) is within :data:`RULE`."""
    text = expression.removeprefix("$").strip()
    if re.fullmatch(r"import [a-z_]+(\.[a-z_]+)*", text):
        return True
    try:
        body = ast.parse(REFERENCE.sub(PLACE, text), mode="eval").body
    except SyntaxError:
        return False
    return _is_value(body) or _is_join(body) or _is_product(body) or _is_call(body)


def _is_value(node: ast.expr) -> bool:
    """A component, or an attribute of one."""
    while isinstance(node, ast.Attribute):
        if node.attr.startswith("_"):
            return False
        node = node.value
    return isinstance(node, ast.Name) and node.id == PLACE


def _is_join(node: ast.expr) -> bool:
    """A path: a value and literal texts added up."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _is_join(node.left) and isinstance(node.right, ast.Constant) and isinstance(node.right.value, str)
    return _is_value(node)


def _is_product(node: ast.expr) -> bool:
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)):
        return False
    return isinstance(node.left, ast.Constant) and isinstance(node.left.value, int | float) and _is_value(node.right)


def _is_call(node: ast.expr) -> bool:
    """A method of a component, or one of a few functions; or the name of a value."""
    if not isinstance(node, ast.Call):
        return ast.unparse(node) in NAMES
    arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
    if not all(_is_value(a) or isinstance(a, ast.Constant) or ast.unparse(a) in NAMES for a in arguments):
        return False
    method = isinstance(node.func, ast.Attribute) and node.func.attr in METHODS and _is_value(node.func.value)
    return method or ast.unparse(node.func) in FUNCTIONS


def check_expressions(bundle: Path) -> list[str]:
    """Every expression is within the rule, and nothing is referred to by its position in a list."""
    found = []
    for path in sorted(bundle.glob("configs/*.json")):
        if path.stem == "metadata":
            continue
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for where, value in walk(content):
            if isinstance(value, str) and value.startswith("$") and not is_allowed(value):
                found.append(f"{path.name}: {where}: {value!r} is not allowed; {RULE}")
            if isinstance(value, str) and value[:1] in "@%$" and POSITION.search(value):
                found.append(f"{path.name}: {where}: {value!r} refers to a position; give what it means a name")
        found += [
            f"{path.name}: {key!r} changes what stands at a position; give it a name"
            for key in content
            if POSITION.search(key)
        ]
    return found
