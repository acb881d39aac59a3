"""One file per kind of device. Nothing outside this folder knows which kind it drives."""
