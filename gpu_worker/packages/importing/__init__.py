"""How modules, exported programs and ONNX files become packages; nothing of it is needed to serve them."""
