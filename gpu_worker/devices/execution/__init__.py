"""Packages made executable on a host: with torch, compiled, or with onnxruntime."""
