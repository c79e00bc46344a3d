"""The live pages: a web server over one store. docs/view.md draws the parts.

Invariant: handlers write nothing but marks, recorded selections and recipe files, each by a POST; every text of the store is escaped by the
templates; nothing of this package is imported by other commands.
"""
