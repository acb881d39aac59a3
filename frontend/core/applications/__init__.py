"""Applications: several models behind one name, chosen, joined and learned about under one deadline."""
