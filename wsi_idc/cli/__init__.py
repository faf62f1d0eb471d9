"""Click commands: parse, call one function, print the result."""
