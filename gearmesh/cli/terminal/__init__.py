"""What commands share: consoles, settings, clients, inputs that a person has, answers that one reads."""
