"""SQL conditions on the rows of a teacher that may have several ids, and on replies that were cut off at a limit."""

from collections.abc import Mapping


class OfTeacher:
    """The teacher of `recycledb.store.pending.Wanted`, whose fields these are."""

    teacher_id: str
    aliases: tuple[str, ...]
    limit: int | None
    limits: Mapping[str, int]

    @property
    def teacher_ids(self) -> tuple[str, ...]:
        """All ids of the teacher."""
        return (self.teacher_id, *self.aliases)

    @property
    def is_teacher(self) -> str:
        """The end of a condition on a teacher's id: equal to :teacher, or one of its ids."""
        return f"IN ({', '.join((':teacher', *self._aliases))})" if self.aliases else "= :teacher"

    @property
    def _aliases(self) -> list[str]:
        return [f":teacher_{i}" for i in range(len(self.aliases))]

    def by_teacher(self, alias: str) -> str:
        """Return the condition that a row of `variant` was made by the teacher: of the aliases' replies, those of `alias_replies`."""
        if not self.aliases:
            return f"{alias}.teacher_id = :teacher"
        aliases = ", ".join(self._aliases)
        return f"""({alias}.teacher_id = :teacher OR ({alias}.teacher_id IN ({aliases}) AND NOT EXISTS (
            SELECT 1 FROM reply mine JOIN reply r ON r.variant_id = mine.variant_id AND r.step = mine.step
                AND r.prompt_id = mine.prompt_id AND coalesce(r.others, '') = coalesce(mine.others, '')
            WHERE mine.text_id = {alias}.text_id AND r.status = 'ok'
            AND (r.teacher_id = :teacher OR (r.teacher_id IN ({aliases}) AND r.teacher_id < mine.teacher_id))
        )))"""

    def cut_off(self, reply: str) -> str:
        """Return the condition that a failed reply was cut off at a limit below that of now; "" where none can be."""
        if self.limit is None:
            return ""
        below = f"AND {self.asked_limit} < {self.limit:d}" if self.limit else ""
        return f"""({reply}.finish_reason = 'length' AND EXISTS (
            SELECT 1 FROM attempt t WHERE t.attempt_id = {reply}.attempt_id AND {self.asked_limit} > 0 {below}
        ))"""

    @property
    def asked_limit(self) -> str:
        """The limit of an attempt `t`; 0 for none."""
        former = " ".join(f"WHEN '{each}' THEN {limit:d}" for each, limit in self.limits.items())
        return (
            f"coalesce(t.max_tokens, CASE t.teacher_id {former} ELSE 0 END)" if former else "coalesce(t.max_tokens, 0)"
        )
