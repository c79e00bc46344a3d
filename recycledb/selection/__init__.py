"""Selections as SQL: recipes, recorded selections, read-only queries, comparisons and explanations.

Invariant: scores are facts and rankings are queries: whatever is ranked or compared is computed from the store's public views, in the
store's own engine; texts, records and statistics are looked up by id in the tables beneath. Nothing but `selection`, `selection_item`,
`name`, and imported students with their statistics, is ever written.
"""
