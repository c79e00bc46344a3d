"""Teachers, the models that answer questions. `contract.py` is their common interface; `open_teacher` loads one teacher's library."""

from recycledb.config import TeacherConfig
from recycledb.reflection.teachers.contract import Question, Reply, Teacher

__all__ = ["Question", "Reply", "Teacher", "open_teacher"]


def open_teacher(config: TeacherConfig) -> Teacher:
    """Return the teacher that `config` describes; its provider's library is imported here.

    Raises TeacherError if it is unavailable: no key, no such model, a bad recording.
    """
    if config.provider == "recorded":
        from recycledb.reflection.teachers.recorded import RecordedTeacher

        return RecordedTeacher(config)
    if config.provider == "transformers":
        from recycledb.reflection.teachers.local import LocalTeacher

        return LocalTeacher(config)
    from recycledb.reflection.teachers.chat import ChatTeacher

    return ChatTeacher(config)
