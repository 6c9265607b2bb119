"""V, M, C and the starts as ONNX graphs, for the page that runs without torch."""
