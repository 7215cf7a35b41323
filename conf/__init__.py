"""What were we told, and in which words do we answer: the models of every configuration, request, result and error."""
