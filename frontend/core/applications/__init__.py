"""Applications: several models behind one name, which are chosen, combined and learned about within one deadline."""
