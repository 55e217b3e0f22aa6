"""The four kinds of engine, and their common base."""
