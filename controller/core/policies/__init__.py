"""Orders of work and admission, behind one Protocol."""
