"""What each operation of an exported graph is in C, by kind."""

from aaren_rl.stepping.c.operations import elementwise, indexing, products, reductions, shapes
from aaren_rl.stepping.c.operations.registry import OPERATIONS, literal

__all__ = ["OPERATIONS", "elementwise", "indexing", "literal", "products", "reductions", "shapes"]
