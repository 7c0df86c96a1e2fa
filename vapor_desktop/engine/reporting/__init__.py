"""Reports: what the records tell of a range of time, as documents that render to HTML, CSV and JSON."""
