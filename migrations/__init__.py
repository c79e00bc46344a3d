"""The store's schema, revision by revision. Revisions are four-digit numbers in order; none imports the library."""
