"""What a run of the load generator comes to: records, statistics, tables and pictures."""
