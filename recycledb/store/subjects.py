"""SQL for the questions of measures and judgings by teachers: variants of a scope, alone, with a reference, or in ordered pairs.

Invariant: which variants are in the scope depends on the teacher that made them, which may be another than the one that is asked; so the
scope's parameters have names of their own (`scope_…`).
"""

import re
from dataclasses import dataclass

from recycledb.store.pending import Scope, candidates

_PARAMETER = re.compile(r":(teacher|prompt_|version_|lazy_student)")
_OWN = ("teacher", "prompt_", "version_", "lazy_student")


@dataclass(frozen=True)
class Subjects:
    """What a step without inputs is asked about.

    Without `first`, each variant of the scope; with `second`, together with the variant of that kind of its sample, the reference. With
    `first`, all ordered pairs of a variant of `first` and one of `second` of a sample; both are a kind, or a kind and an author
    (`answer/AUTHOR`).
    """

    scope: Scope
    first: str = ""
    second: str = ""

    @property
    def parameters(self) -> dict[str, object]:
        """The values that `ctes` binds."""
        own = {
            f"scope_{name}" if name.startswith(_OWN) else name: value for name, value in self.scope.parameters.items()
        }
        return {**own, "first_kind": self.first, "second_kind": self.second}

    def ctes(self, samples: str, step: str) -> str:
        """Return the CTEs up to `ask`: the questions of `step` about samples."""
        first = _PARAMETER.sub(r":scope_\1", candidates(self.scope, samples))
        columns = f"c.variant_id, c.sample_id, c.kind, '{step}' AS step, CAST(:prompt_{step} AS VARCHAR) AS prompt_id"
        if not self.second:
            return f"{first}, ask AS (SELECT {columns}, '' AS others FROM candidate c)"
        if not self.first:
            return f"""
                {first},
                reference AS MATERIALIZED (
                    SELECT r.sample_id, min(r.variant_id) AS variant_id FROM current_variants r
                    WHERE r.kind = :second_kind AND r.sample_id IN (SELECT sample_id FROM candidate) GROUP BY r.sample_id
                ),
                ask AS (
                    SELECT {columns}, o.variant_id AS others FROM candidate c JOIN reference o ON o.sample_id = c.sample_id
                    WHERE o.variant_id <> c.variant_id
                )
            """
        return f"""
            {first},
            named AS MATERIALIZED (
                SELECT c.*, c.kind || '/' || coalesce(a.name, '') AS by_author FROM candidate c
                JOIN variant v ON v.variant_id = c.variant_id
                LEFT JOIN derivation d ON d.derivation_id = v.derivation_id
                LEFT JOIN augmentation a ON a.augmentation_id = d.augmentation_id
            ),
            ask AS (
                SELECT {columns}, o.variant_id AS others FROM named c JOIN named o ON o.sample_id = c.sample_id
                WHERE ({_is("c", "first")} AND {_is("o", "second")}) OR ({_is("c", "second")} AND {_is("o", "first")})
            )
        """


def _is(alias: str, which: str) -> str:
    return f"(:{which}_kind IN ({alias}.kind, {alias}.by_author))"
