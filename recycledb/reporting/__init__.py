"""Pictures and reports: self-contained HTML files that open offline."""
