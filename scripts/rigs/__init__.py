"""What benchmarks and tests share: meshes of real processes, systems under test, tables."""
