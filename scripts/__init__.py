"""The command lines: thin wrappers that parse, call and print."""
