"""Meshes on this machine: started, supervised, examined, and given models."""
