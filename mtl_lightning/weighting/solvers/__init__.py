"""Small convex problems behind the methods: float64 on the CPU."""
