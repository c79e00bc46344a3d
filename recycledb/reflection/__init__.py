"""Reflection: the prompts that go to a teacher, the reading of what comes back, and the teachers themselves."""
