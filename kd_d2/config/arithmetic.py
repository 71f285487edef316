"""Arithmetic in config files, without running code.

Detectron2's own RetinaNet configs compute their anchors: ``!!python/object/apply:eval ["[[x, x *
2**(1.0/3)] for x in [32, 64]]"]``. PyYAML would run any Python there; this reads numbers only.
"""

import ast
import operator
from collections.abc import Mapping

import yaml

__all__ = ["ConfigLoader", "evaluate_arithmetic"]

# Nobody writes an anchor beyond these, and no expression within them takes long or grows large
_LONGEST_TEXT = 1000
_LARGEST_NUMBER = 1e18
_LARGEST_EXPONENT = 64
_BINARY = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def evaluate_arithmetic(text: str) -> int | float | list | tuple:
    """The value of an expression of numbers, ``+ - * / **``, lists, tuples and one list loop.

    Raises:
        ValueError: it is anything else, or its numbers are too large.

    >>> evaluate_arithmetic("[[x, x * 2**(1.0/2)] for x in [9 - 1, 32]]")
    [[8, 11.313708498984761], [32, 45.254833995939045]]
    """
    if len(text) > _LONGEST_TEXT:
        raise ValueError(f"an expression of more than {_LONGEST_TEXT} characters")
    try:
        return _value(ast.parse(text.strip(), mode="eval").body, {})
    except (ArithmeticError, MemoryError, RecursionError, SyntaxError) as error:
        raise ValueError(f"{text!r} cannot be computed") from error


def _value(node: ast.expr, names: Mapping[str, int | float]):
    match node:
        case ast.Constant():
            return _number(node.value)
        case ast.Name() if node.id in names:
            return names[node.id]
        case ast.UnaryOp(op=ast.USub()):
            return -_number(_value(node.operand, names))
        case ast.BinOp() if type(node.op) in _BINARY:
            left, right = (_number(_value(side, names)) for side in (node.left, node.right))
            if isinstance(node.op, ast.Pow) and abs(right) > _LARGEST_EXPONENT:
                raise ValueError(f"the exponent {right} is too large")
            return _number(_BINARY[type(node.op)](left, right))
        case ast.List():
            return [_value(item, names) for item in node.elts]
        case ast.Tuple():
            return tuple(_value(item, names) for item in node.elts)
        # One loop, and over numbers: loops within loops could make a short text a huge list
        case ast.ListComp(
            elt=item,
            generators=[ast.comprehension(target=ast.Name(id=name), ifs=[], is_async=0) as loop],
        ) if not names:
            values = _value(loop.iter, names)
            if not isinstance(values, list | tuple):
                raise ValueError(f"{ast.unparse(loop.iter)!r} is no list")
            return [_value(item, {name: _number(value)}) for value in values]
    raise ValueError(f"{ast.unparse(node)!r} is no arithmetic")


def _number(value) -> int | float:
    # a bool is an int, a root of a negative number complex, and [0] * 10**9 no number at all
    if type(value) not in (int, float) or not abs(value) <= _LARGEST_NUMBER:
        raise ValueError(f"{value!r:.40} is no number, or too large")
    return value


class ConfigLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which also knows the one tag that Detectron2's configs carry."""


def _construct_arithmetic(loader: ConfigLoader, node: yaml.Node):
    try:
        (text,) = loader.construct_sequence(node)
        if not isinstance(text, str):
            raise ValueError(f"{text!r} is no text")
        return evaluate_arithmetic(text)
    except ValueError as error:
        raise yaml.constructor.ConstructorError(
            None, None, f"it is no arithmetic, {error}", node.start_mark
        ) from error


ConfigLoader.add_constructor("tag:yaml.org,2002:python/object/apply:eval", _construct_arithmetic)
