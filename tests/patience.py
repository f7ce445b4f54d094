"""How long tests wait for what must come: longer than the slowest machine takes. It costs nothing
while all is well.
"""

PATIENCE_S = 300.0
