"""What the tests share: true chains, true values, comparisons and laws."""
