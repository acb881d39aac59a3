"""What a frontend decides: requests, the prediction cache, applications, and the public protocol."""
