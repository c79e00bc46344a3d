"""Hugging Face models, for students and local teachers: `folder` checks a model's files, `loading` loads the model.

Invariant: code that comes with a model is never run, and every weight of a loaded model comes from its files. Importing this package
loads neither torch nor transformers; `loading` does.
"""
