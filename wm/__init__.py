"""World models (Ha and Schmidhuber, 2018): V, M and C for any task."""
