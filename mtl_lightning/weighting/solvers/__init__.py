"""Solvers on small matrices, in float64."""
