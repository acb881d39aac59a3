"""Plans every action on every device, predicts every duration, meets deadlines or refuses at once."""
