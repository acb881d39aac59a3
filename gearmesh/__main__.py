"""`python -m gearmesh`: the command `gearmesh`, for one interpreter."""

from gearmesh.cli.start import main

if __name__ == "__main__":
    main()
