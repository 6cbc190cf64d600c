"""The ``$`` expressions that a config may hold: an allow-list, read with ``ast`` and never evaluated."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

IMPORTS = ("monai", "operator", "torch")
RULE = (
    "'$' is for the imports of monai, operator and torch, attributes of a component ('$@loss.in_loss'), .to(@device), "
    ".parameters(), .run(), path joins ('$@run_dir + '/model.pt''), a value times a number (a whole one "
    "above 0), len(@…), operator.lt, operator.gt, torch.channels_last_3d and monai.utils.set_determinism(seed=@seed); "
    "nothing else"
)
NAMES = {"operator.lt", "operator.gt", "torch.channels_last_3d"}  # that stand for values
METHODS = {"to": (1, {"memory_format"}), "parameters": (0, set()), "run": (0, set())}  # of components: arguments
FUNCTIONS = {"len": (1, set()), "monai.utils.set_determinism": (0, {"seed"})}
REFERENCE = re.compile(r"@[\w#:]+")
PLACE = "component__"  # what a reference becomes, so that Python can parse the expression
MOST_LETTERS = 1000
MOST_TIMES = 1_000_000
_POINT = re.compile(r"\.([./]|$)")
"""A text that may end a ``..`` which the one in front of it begins."""
_TEXT = re.compile(r"[\w ./+=,*-]+")
"""What a text in a path join is made of. MONAI replaces ``@name`` by code of its own even between quotes, so that
``' @f {code}'`` would end the text and begin one that Python evaluates."""


def is_allowed(expression: str) -> bool:
    """Whether an expression (with its ``$``) is within :data:`RULE`."""
    text = expression.removeprefix("$").strip()
    if text.startswith("import "):
        return text.removeprefix("import ") in IMPORTS
    body = _parsed(text)
    if body is None:
        return False
    try:
        return _is_value(body) or _is_join(body) or _is_product(body) or _is_call(body) or ast.unparse(body) in NAMES
    except RecursionError:
        return False


def is_join(expression: str) -> bool:
    """Whether an expression (with its ``$``) joins a path, so that its value is a text."""
    body = _parsed(expression.removeprefix("$").strip())
    try:
        return isinstance(body, ast.BinOp) and _is_join(body)
    except RecursionError:
        return False


def referred(expression: str) -> list[str]:
    """The ids that a text refers to."""
    return [found.removeprefix("@") for found in REFERENCE.findall(expression)]


def texts_of(expression: str) -> Iterator[str]:
    """The literal texts in an expression, the ends of paths."""
    body = _parsed(expression.removeprefix("$").strip())
    for node in () if body is None else ast.walk(body):
        if _is_text(node):
            yield str(node.value)  # type: ignore[attr-defined]


def _parsed(text: str) -> ast.expr | None:
    if PLACE in text or len(text) > MOST_LETTERS:
        return None
    try:
        return ast.parse(REFERENCE.sub(PLACE, text), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # a zero byte, brackets without end
        return None


def _is_value(node: ast.expr) -> bool:
    """A component, or an attribute of one."""
    while isinstance(node, ast.Attribute):
        if node.attr.startswith("_"):
            return False
        node = node.value
    return isinstance(node, ast.Name) and node.id == PLACE


def _is_join(node: ast.expr) -> bool:
    """A path: references and literal texts added up, of which no two make a ``..`` where they meet.

    Attributes are none of it: one of a component may be an empty text, before which ``/etc`` is absolute.
    """
    parts: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts.append(node.right)
        node = node.left
    before = None  # the text in front, or None for a reference
    for part in reversed(parts):
        if _is_text(part):
            before = str(part.value)  # type: ignore[attr-defined]
            if not _TEXT.fullmatch(before) or _POINT.match(before) or PLACE in before:
                return False
        elif _is_reference(part) and before is not None and not before.endswith("."):
            before = None
        else:
            return False
    return _is_reference(node)


def _is_reference(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == PLACE


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_product(node: ast.expr) -> bool:
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)):
        return False
    sides = [node.left, node.right]
    return any(map(_is_value, sides)) and any(map(_is_number, sides))


def _is_number(node: ast.expr) -> bool:
    """A number that makes no empty text of a text, and none that fills the memory."""
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node, sign = node.operand, -1
    value = node.value if isinstance(node, ast.Constant) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= MOST_TIMES and (sign * value > 0 or isinstance(value, float))


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
