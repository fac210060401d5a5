"""What clients see: the queue API and the sentences in it."""
