"""One self-contained HTML page per run: the verdict, the tables and the plots."""
