"""Selections as SQL: recipes, recorded selections, read-only queries, comparisons and explanations.

Invariant: scores are facts and rankings are queries: everything here is computed from the store's public views, in the
store's own engine, and nothing but `selection`, `selection_item`, `name` and imported statistics is ever written.
"""
