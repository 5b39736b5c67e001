"""How results are written: one interval, one table, one palette, one report."""
