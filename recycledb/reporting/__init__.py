"""Plots and reports: self-contained HTML files that open offline."""
