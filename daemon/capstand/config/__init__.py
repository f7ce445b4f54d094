"""What the operator wants: the schema, and what is wrong where a file does not keep to it."""
