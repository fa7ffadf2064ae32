"""The HTTP API and the page: what `weft live` serves."""
