"""One file per verb: what the command line knows, and the only place that knows everybody."""
