"""Plans every action on every device, predicts every duration, meets deadlines or refuses at once."""

from mesh.process.compiled import install

install()
