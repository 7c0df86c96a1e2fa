"""Pure values and rules: no I/O, no clock, no foreign library but pydantic and lxml."""
