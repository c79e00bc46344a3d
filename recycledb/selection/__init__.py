"""Selections as SQL: recipes, recorded selections, read-only queries, comparisons and explanations.

Invariant: scores are facts and rankings are queries: rankings and comparisons are computed from the store's public views, by the store's
own engine; texts, records and statistics are looked up by id in the tables. Only `selection`, `selection_item`, `name`, and imported
students with their statistics are written.
"""
