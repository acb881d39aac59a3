"""What a worker decides: lanes, pages, measuring, and who is sent which outputs."""
