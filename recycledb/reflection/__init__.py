"""Reflection: the prompts of teacher steps, and the teachers that answer them."""
