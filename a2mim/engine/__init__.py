"""Configuration, optimisation, hooks, the run: the only door to mmengine's Runner."""
