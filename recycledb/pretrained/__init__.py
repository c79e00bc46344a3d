"""Models as Hugging Face's libraries keep them, for students and local teachers alike: `folder` looks at a model's files, `loading` loads.

Invariant: no code of a model is ever run, and every weight of a loaded model comes from its files. Importing this package loads neither
torch nor transformers; `loading` does.
"""
