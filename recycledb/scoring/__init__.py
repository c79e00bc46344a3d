"""Scoring with a student: texts to token spans, spans to sums of token losses (IFD, arXiv:2308.12032; rIFD, arXiv:2402.10110).

Invariant: every number is exactly the published statistic, and one that cannot be computed is a status, never a zero.
`spans` is pure; `engine` and the modules below it import torch and transformers and are themselves imported late: importing this
package loads neither.
"""

from recycledb.methods.ifd import TEMPLATES
from recycledb.scoring.requests import Progress, Request, Result, TokenCount
from recycledb.scoring.spans import Span

__all__ = ["TEMPLATES", "Progress", "Request", "Result", "Span", "TokenCount"]
