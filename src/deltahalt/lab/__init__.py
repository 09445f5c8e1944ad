"""What measures: accuracy, benchmarks, speed, figures, and the rows they are made of."""
