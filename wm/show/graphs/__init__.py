"""A run as ONNX graphs, for use without torch, such as in a browser: starts, M's step in the dream, C, V's decoder.

starts: number ─→ z, h, c;  controller: z, h ─→ a;  dream: z, h, c, a, noise ─→ z', h', c', ...;  decoder: z ─→ x
"""
