"""The ``$`` expressions that a config may hold: an allow-list, read with ``ast`` and never evaluated."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

from bundle_configs import walk

IMPORTS = ("monai", "operator", "torch")
RULE = (
    "'$' is for the imports of monai, operator and torch, attributes of a component ('$@loss.in_loss'), .to(@device), "
    ".parameters(), .run(), path joins ('$@run_dir + '/model.pt''), a number times a value, len(@…), operator.lt, "
    "operator.gt, torch.channels_last_3d and monai.utils.set_determinism(seed=@seed); nothing else"
)
NAMES = {"operator.lt", "operator.gt", "torch.channels_last_3d"}  # that stand for values
METHODS = {"to": (1, {"memory_format"}), "parameters": (0, set()), "run": (0, set())}  # of components: arguments
FUNCTIONS = {"len": (1, set()), "monai.utils.set_determinism": (0, {"seed"})}
REFERENCE = re.compile(r"@[\w#:]+")
PLACE = "component__"  # what a reference becomes, so that Python can parse the expression
ID = re.compile(r"[@%][\w#:-]+")
POSITION = re.compile(r"#-?\d+(?=#|$|[^\w])")


def is_allowed(expression: str) -> bool:
    """Whether an expression (with its ``$``) is within :data:`RULE`."""
    text = expression.removeprefix("$").strip()
    if text.startswith("import "):
        return text.removeprefix("import ") in IMPORTS
    if PLACE in text:
        return False
    try:
        body = ast.parse(REFERENCE.sub(PLACE, text), mode="eval").body
    except SyntaxError:
        return False
    return _is_value(body) or _is_join(body) or _is_product(body) or _is_call(body) or ast.unparse(body) in NAMES


def _is_value(node: ast.expr) -> bool:
    """A component, or an attribute of one."""
    while isinstance(node, ast.Attribute):
        if node.attr.startswith("_"):
            return False
        node = node.value
    return isinstance(node, ast.Name) and node.id == PLACE


def _is_join(node: ast.expr) -> bool:
    """A path: values and literal texts added up."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _is_join(node.left) and (_is_value(node.right) or _is_text(node.right))
    return _is_value(node)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_product(node: ast.expr) -> bool:
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)):
        return False
    sides = [node.left, node.right]
    return any(map(_is_value, sides)) and any(map(_is_number, sides))


def _is_number(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def _is_call(node: ast.expr) -> bool:
    """A method of a component, or one of a few functions, with the arguments that it is known to take."""
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Attribute) and _is_value(node.func.value):
        known = METHODS.get(node.func.attr)
    else:
        known = FUNCTIONS.get(ast.unparse(node.func))
    if known is None or len(node.args) != known[0]:
        return False
    named = {keyword.arg for keyword in node.keywords}  # None stands for **
    arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
    return named <= known[1] and all(_is_value(a) or ast.unparse(a) in NAMES for a in arguments)


def has_position(text: str) -> bool:
    """Whether an id, or a text with references, goes by a place in a list (``handlers#5``, ``handlers::5``)."""
    return POSITION.search(text.replace("::", "#")) is not None


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
            if (
                isinstance(value, str)
                and value[:1] in "@%$"
                and any(map(has_position, re.findall(r"[@%][\w#:-]+", value)))
            ):
                found.append(f"{path.name}: {where}: {value!r} refers to a position; give what it means a name")
        found += [
            f"{path.name}: {key!r} changes what stands at a position; give it a name"
            for key in content
            if has_position(key)
        ]
    return found
