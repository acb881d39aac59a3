"""Common ground of all services (messages, transport, settings) and the registry that introduces them."""
