"""The report of a run: one HTML file with words, tables, charts and maps that opens without a network."""
