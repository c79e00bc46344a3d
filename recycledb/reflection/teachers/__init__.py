"""Teachers: who is asked. `contract.py` says what each of them keeps to; `open_teacher` loads the library of the one that is needed."""

from recycledb.config import TeacherConfig
from recycledb.reflection.teachers.contract import Question, Reply, Teacher

__all__ = ["Question", "Reply", "Teacher", "open_teacher"]


def open_teacher(config: TeacherConfig) -> Teacher:
    """Return the teacher that `config` describes, loading its provider's library only now.

    Raises TeacherError where it cannot be had: no key, no such model, a bad recording.
    """
    if config.provider == "recorded":
        from recycledb.reflection.teachers.recorded import RecordedTeacher

        return RecordedTeacher(config)
    if config.provider == "transformers":
        from recycledb.reflection.teachers.local import LocalTeacher

        return LocalTeacher(config)
    from recycledb.reflection.teachers.chat import ChatTeacher

    return ChatTeacher(config)
