"""What is told of requests and actions: totals, snapshots, and facts for whoever follows."""
