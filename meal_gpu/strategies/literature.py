"""Strategies of the literature, each a few lines over scores and the two greedy loops: functions of a `PoolView`.

docs/strategies.md has sources, formulas, what each needs of a pass, and costs.
"""

from .clusters import CLUSTERS
from .covering import COVERING
from .scores import SCORES
from .spreading import SPREADING
from .view import Strategy

LITERATURE: dict[str, Strategy] = {**SCORES, **SPREADING, **CLUSTERS, **COVERING}
