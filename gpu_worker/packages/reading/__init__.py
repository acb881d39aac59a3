"""Reads files of packages that anybody may have written: bounded, checked, and as data alone."""
