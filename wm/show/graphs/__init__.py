"""C and the starts of dreams as ONNX graphs; those of V and M lie beside them."""
