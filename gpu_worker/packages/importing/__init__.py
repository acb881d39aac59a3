"""Makes packages of modules, exported programs and ONNX files. Nothing of it is needed for serving."""
