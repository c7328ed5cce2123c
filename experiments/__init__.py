"""What was done with the tool: the article's study, benchmarks, and the published results."""
