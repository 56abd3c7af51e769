"""Training modes as data: which views are queries, which are keys, and with which weight."""

from typing import NamedTuple

from ops.errors import InputError


class Term(NamedTuple):
    """One term of the objective: queries of view `query` against keys of view `key`."""

    query: int
    key: int
    weight: float


def view_plan(sym: bool = False, multi_crop: bool = False, num_views: int = 2) -> list[Term]:
    """The terms whose weighted sum is the objective, for the views 0 .. num_views - 1.

    single crop             0 is the query, 1 the key
    symmetric               0 and 1 are query and key of each other, with half weight
    multi-crop              0 is the key, all others are queries: a sum over crops, not a mean
    multi-crop, symmetric   0 and 1 as in symmetric; all others against both, with half weight
    """
    if num_views < 2:
        raise InputError(f"num_views={num_views}: a query and a key need at least 2 views")
    if not multi_crop and num_views != 2:
        raise InputError(f"num_views={num_views}: without multi_crop there are exactly 2 views")
    if sym:
        crops = [Term(i, key, 0.5) for i in range(2, num_views) for key in (0, 1)]
        return [Term(0, 1, 0.5), Term(1, 0, 0.5), *crops]
    if multi_crop:
        return [Term(i, 0, 1.0) for i in range(1, num_views)]
    return [Term(0, 1, 1.0)]


def query_views(plan: list[Term]) -> list[int]:
    """The views that pass through the query encoder, ascending."""
    return sorted({term.query for term in plan})


def key_views(plan: list[Term]) -> list[int]:
    """The views that pass through the key encoder, ascending."""
    return sorted({term.key for term in plan})
