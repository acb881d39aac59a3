"""The command `gearmesh`: one module per group of commands, imported when it is typed."""
