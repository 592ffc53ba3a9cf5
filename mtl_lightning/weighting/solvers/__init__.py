"""Exact solvers on small Gramians, in float64 and numpy: at these sizes an operation of torch costs several of numpy's."""
