"""What all services share (messages, transport, settings), and the broker: the registry that tells services of each
other.
"""
