"""Studies made with the tool: the article's, with its published results, and the benchmarks."""
